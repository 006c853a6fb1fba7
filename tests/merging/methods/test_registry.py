"""What the registry promises, and every method in it."""

import pytest
import torch

from merging.methods import METHODS, validate_parameters
from tests.merging.methods.naive import close, random_tensors, run

RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}


def experts_for(name, pool):
    """As many experts as a method takes."""
    least, most = METHODS[name].experts
    return pool[: min(len(pool), most or len(pool))] if least <= len(pool) else pool


@pytest.mark.parametrize("name", METHODS)
def test_declarations_are_complete(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.paper
    for parameter in method.parameters.values():
        assert parameter.help
        assert parameter.problem(parameter.default) is None
    assert validate_parameters(name, {}, "here") == []


def test_validation_names_the_place_and_the_nearest_name():
    (problem,) = validate_parameters("ties", {"densty": 1}, "here")
    assert problem.startswith("here: unknown parameter 'densty' of ties; did you mean density? valid: weight, ")
    assert validate_parameters("ties", {"density": -1}, "here") == [
        "here: density must be a number from 0 to 1, found -1"
    ]
    (problem,) = validate_parameters("della", {"density": 0.1, "epsilon": 0.15}, "here")
    assert "must lie between 0 and 1" in problem


@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_left_as_they_were(name):
    base, *experts = random_tensors(4)
    before = [t.clone() for t in (base, *experts)]
    run(name, base, experts_for(name, experts), density=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *experts), strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (1,), (1, 1), (2, 3, 4), ()])
def test_any_shape_gives_its_own(name, shape):
    base, *experts = random_tensors(4, shape)
    merged = run(name, base, experts_for(name, experts), density=0.5)
    assert merged.shape == shape
    assert merged.dtype == torch.float64
    assert bool(merged.isfinite().all())


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_base and name not in RANDOM])
def test_experts_equal_to_the_base_give_the_base(name):
    (base,) = random_tensors(1)
    merged = run(name, base, experts_for(name, [base.clone() for _ in range(3)]))
    torch.testing.assert_close(merged, base, **close)
