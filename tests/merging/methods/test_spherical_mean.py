"""multislerp, against its construction in full space; karcher, by what defines a Karcher mean."""

import math

import pytest
import torch
from hypothesis import assume, given, settings

from merging.errors import InputError
from tests.merging.methods.naive import angle, base_and_experts, close, random_tensors, run, weighted


@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_equals_the_construction_in_full_space(with_base):
    base, *experts = random_tensors(4)
    weights = [0.5, 1.0, 2.0]
    origin = base if with_base else torch.zeros_like(base)
    vectors = torch.stack([(expert - origin).flatten() for expert in experts])
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    norms = vectors.norm(dim=1, keepdim=True)
    units = vectors / norms
    mean = (units * w[:, None]).sum(0)
    mean = mean / mean.norm()
    tangent = ((units - (units @ mean)[:, None] * mean) * w[:, None]).sum(0)
    length = tangent.norm() + 1e-8
    point = mean * torch.cos(length) + tangent * torch.sin(length) / length
    expected = origin + (point * (norms[:, 0] * w).sum()).view(base.shape)
    found = run("multislerp", base if with_base else None, experts, weighted(weights))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_multislerp_of_opposite_vectors():
    (one,) = random_tensors(1)
    torch.testing.assert_close(run("multislerp", None, [one, -one]), torch.zeros_like(one), **close)
    others = [torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 3**0.5 / 2]), torch.tensor([-0.5, -(3**0.5) / 2])]
    with pytest.raises(InputError, match="directions cancel in tensor w"):
        run("multislerp", None, others, eps=1e-6)


def test_karcher_mean_balances_the_logarithms():
    """At the Karcher mean the tangent vectors towards the inputs sum to 0, and its length is their mean length."""
    experts = [e + 2 for e in random_tensors(3)]
    merged = run("karcher", None, experts, max_iter=100, tol=1e-12)
    mean = merged.flatten() / merged.norm()
    logarithms = []
    for expert in experts:
        unit = expert.flatten() / expert.norm()
        theta = angle(mean, unit)
        logarithms.append(theta / math.sin(theta) * (unit - math.cos(theta) * mean))
    torch.testing.assert_close(sum(logarithms), torch.zeros_like(mean), rtol=0, atol=1e-9)
    assert merged.norm().item() == pytest.approx(sum(e.norm().item() for e in experts) / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_karcher_mean_takes_no_way_to_an_opposite_vector(dtype):
    for seed in range(5):
        one = random_tensors(1, (32, 32), seed)[0].to(dtype)
        found = run("karcher", None, [one, -one, 3 * one])
        torch.testing.assert_close(found, one * (5 / 3))


@given(base_and_experts())
@settings(max_examples=100, deadline=None)
def test_karcher_equals_steps_taken_on_the_vectors_themselves(inputs):
    _, experts, _ = inputs
    lengths = [expert.norm().item() for expert in experts]
    units = [expert / length for expert, length in zip(experts, lengths, strict=True) if length > 1e-5]
    mean = sum(units) / len(units) if units else experts[0]
    assume(not units or mean.norm() > 1e-3)  # otherwise the first direction is taken, whatever the others
    mean = mean / mean.norm() if units else mean
    for _ in range(10):
        logarithms = []
        for unit in units:
            theta = angle(mean, unit)
            if 1e-5 <= theta <= math.pi - 1e-6:
                logarithms.append(theta / math.sin(theta) * (unit - math.cos(theta) * mean) / len(units))
        step = sum(logarithms) if logarithms else torch.zeros_like(mean)
        length = step.norm().item()
        if length < 1e-5:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
        mean = mean / mean.norm()
    expected = mean * sum(lengths) / len(experts) if units else torch.zeros_like(mean)
    torch.testing.assert_close(run("karcher", None, experts), expected, rtol=1e-6, atol=1e-6)
