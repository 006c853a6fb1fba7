"""Closed forms of the static methods, and what the registry promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods import METHODS, validate_parameters
from merging.methods.random import keep_mask, random_bits
from merging.methods.survey import survey_model_trim
from merging.methods.ties import trim

floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-30, 3e4])


def tensors(draw, count):
    length = draw(st.integers(0, 12))
    rows = draw(st.lists(st.lists(floats, min_size=length, max_size=length), min_size=count, max_size=count))
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


@st.composite
def base_and_experts(draw):
    base, *experts = tensors(draw, draw(st.integers(2, 4)))
    weights = [draw(st.sampled_from([1.0, 0.5, -0.5, 2.0])) for _ in experts]
    return base, experts, weights


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
    assert validate_parameters("ties", {"densty": 1}, "here") == [
        "here: unknown parameter 'densty' of ties; did you mean density?"
    ]
    assert validate_parameters("ties", {"density": -1}, "here") == [
        "here: density must be a number from 0 to 1, found -1"
    ]


def test_linear_is_the_weighted_mean(group):
    experts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    weights = [{"weight": 1.0}, {"weight": 3.0}]
    merged = METHODS["linear"].merge(group("linear", None, experts, weights))
    assert merged.tolist() == [2.5, 5.0]
    total = METHODS["linear"].merge(group("linear", None, experts, weights, normalize=False))
    assert total.tolist() == [10.0, 20.0]


def test_task_arithmetic_of_one_expert_is_the_expert(group):
    base, expert = torch.zeros(4), torch.randn(4)
    assert torch.equal(METHODS["task_arithmetic"].merge(group("task_arithmetic", base, [expert])), expert)


@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_left_as_they_were(group, name):
    generator = torch.Generator().manual_seed(0)
    base, *experts = (torch.randn(6, 4, generator=generator) for _ in range(4))
    before = [t.clone() for t in (base, *experts)]
    METHODS[name].merge(group(name, base, experts, density=0.5))
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *experts), strict=True))


def naive_ties(base, experts, weights, density, normalize, scale):
    """TIES element by element, in plain Python."""
    kept = []
    for expert in experts:
        delta = [float(x) - float(b) for x, b in zip(expert, base, strict=True)]
        order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
        largest = set(order[: int(density * len(delta))])
        kept.append([d if i in largest else 0.0 for i, d in enumerate(delta)])
    merged = []
    for i, b in enumerate(base.tolist()):
        weighted = [w * k[i] for w, k in zip(weights, kept, strict=True)]
        sign = 1 if sum(weighted) >= 0 else -1
        agreeing = [(d, w) for d, w in zip(weighted, weights, strict=True) if d * sign > 0]
        mixed = sum(d for d, _ in agreeing)
        divisor = sum(w for _, w in agreeing) or 1.0
        merged.append(b + scale * (mixed / divisor if normalize else mixed))
    return torch.tensor(merged, dtype=torch.float64)


@given(base_and_experts(), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans(), st.sampled_from([1.0, 0.3]))
@settings(max_examples=200, deadline=None)
def test_ties_equals_a_naive_implementation(inputs, density, normalize, scale):
    base, experts, weights = inputs
    found = METHODS["ties"].merge(ties_group(base, experts, weights, density=density, normalize=normalize, scale=scale))
    expected = naive_ties(base, experts, weights, density, normalize, scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def ties_group(base, experts, weights, *, density, normalize=True, scale=1.0, trim="tensor", name="w", survey=None):
    from merging.methods import Group

    shared = {"normalize": normalize, "lambda": scale, "trim": trim, "int8_mask": False}
    return Group(
        name,
        base,
        experts,
        shared,
        [{"weight": w, "density": density} for w in weights],
        ["k"] * len(experts),
        0,
        survey,
    )


@given(st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_trim_keeps_exactly_the_largest(length, density, seed):
    delta = torch.randint(-4, 5, (length,), generator=torch.Generator().manual_seed(seed)).double()
    kept = trim(delta, density)
    order = sorted(range(length), key=lambda i: (-abs(delta[i].item()), i))
    largest = set(order[: int(density * length)])
    assert kept.tolist() == [d if i in largest else 0.0 for i, d in enumerate(delta.tolist())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [1.0, 0.6, 0.2, 0.01])
def test_trimming_over_the_model_equals_a_sort_of_the_whole(dtype, density):
    generator = torch.Generator().manual_seed(1)
    shapes = [(7, 5), (3,), (11, 2)]
    groups = []
    for i, shape in enumerate(shapes):
        base, *experts = (torch.randn(shape, generator=generator, dtype=dtype).round(decimals=1) for _ in range(3))
        groups.append(ties_group(base, experts, [1.0, 1.0], density=density, trim="model", name=str(i)))
    found = survey_model_trim(lambda: iter(groups), groups[0].shared, groups[0].settings)
    flat = [torch.cat([g.deltas()[e].flatten() for g in groups]) for e in range(2)]
    k = int(flat[0].numel() * (1 - density))
    expected = [d.abs().sort().values[k - 1].item() if k else 0.0 for d in flat]
    assert found.cuts == expected
    total = sum(d * (d.abs() >= cut) for d, cut in zip(flat, expected, strict=True))
    assert found.majority == float((total.sign().sum()).sign())


def test_masks_depend_on_seed_expert_tensor_and_element_alone():
    like = torch.empty(1000)
    whole = keep_mask(like, 0.3, 1, "expert", "w")
    assert torch.equal(keep_mask(torch.empty(10, 100), 0.3, 1, "expert", "w").flatten(), whole)
    assert torch.equal(keep_mask(torch.empty(400), 0.3, 1, "expert", "w", start=600), whole[600:])
    others = [(2, "expert", "w"), (1, "other", "w"), (1, "expert", "v")]
    for seed, expert, name in others:
        assert not torch.equal(keep_mask(like, 0.3, seed, expert, name), whole)


def test_random_bits_are_those_of_another_implementation():
    import hashlib

    def lowbias32(x):
        x ^= x >> 16
        x = x * 0x7FEB352D & 0xFFFFFFFF
        x ^= x >> 15
        x = x * 0x846CA68B & 0xFFFFFFFF
        return x ^ x >> 16

    digest = hashlib.sha256(b"5\0expert\0w\0" + b"0").digest()
    first, second, third = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8))
    expected = [lowbias32((lowbias32(i ^ first) + second) & 0xFFFFFFFF) ^ third for i in range(200)]
    found = random_bits(torch.empty(200), 5, "expert", "w")
    assert [value & 0xFFFFFFFF for value in found.tolist()] == expected


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_masks_keep_their_share(density):
    n = 1 << 20
    masks = [keep_mask(torch.empty(n), density, 0, expert, "w") for expert in ("a", "b")]
    tolerance = 5 * (density * (1 - density) / n) ** 0.5
    assert all(abs(mask.double().mean().item() - density) <= tolerance for mask in masks)
    both = (masks[0] & masks[1]).double().mean().item()  # independent: density squared
    assert abs(both - density**2) <= 5 * (density**2 * (1 - density**2) / n) ** 0.5
    neighbours = (masks[0][1:] & masks[0][:-1]).double().mean().item()
    assert abs(neighbours - density**2) <= 8 * (density**2 * (1 - density**2) / n) ** 0.5


def test_dare_rescales_as_asked(group):
    base, expert = torch.zeros(10_000), torch.rand(10_000) + 0.5
    by_density = METHODS["dare_linear"].merge(group("dare_linear", base, [expert], density=0.25))
    kept = by_density != 0
    torch.testing.assert_close(by_density[kept], expert[kept] / 0.25)
    by_l1 = METHODS["dare_linear"].merge(group("dare_linear", base, [expert], density=0.25, rescale="l1"))
    torch.testing.assert_close(by_l1.abs().sum(), expert.sum())
    plain = METHODS["dare_linear"].merge(group("dare_linear", base, [expert], density=0.25, rescale="none"))
    assert torch.equal(plain, expert * kept)


def test_dare_at_density_one_is_task_arithmetic(group):
    base, *experts = (torch.randn(50) for _ in range(3))
    dare = METHODS["dare_linear"].merge(group("dare_linear", base, experts))
    assert torch.equal(dare, METHODS["task_arithmetic"].merge(group("task_arithmetic", base, experts)))
