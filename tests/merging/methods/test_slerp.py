"""slerp and nuslerp, against the formula for two vectors."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import angle, base_and_experts, close, random_tensors, run, weighted


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_walks_the_arc(t):
    base, other = random_tensors(2)
    theta = angle(base, other)
    expected = (math.sin((1 - t) * theta) * base + math.sin(t * theta) * other) / math.sin(theta)
    torch.testing.assert_close(run("slerp", base, [other], t=t), expected, **close)


def test_slerp_is_linear_between_parallel_vectors():
    (base,) = random_tensors(1)
    torch.testing.assert_close(run("slerp", base, [3 * base], t=0.25), 1.5 * base, **close)


@given(base_and_experts(most=2), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_slerp_equals_a_naive_implementation(inputs, t):
    """Vectors that are 0, and such as are nearly parallel, are mixed linearly."""
    base, (other,), _ = inputs
    b, x = base.tolist(), other.tolist()
    lengths = [math.sqrt(math.fsum(value * value for value in vector)) for vector in (b, x)]
    b_unit, x_unit = ([v / (n if n > 1e-8 else 1.0) for v in vector] for vector, n in zip((b, x), lengths, strict=True))
    cosine = math.fsum(p * q for p, q in zip(b_unit, x_unit, strict=True))
    assume(abs(abs(cosine) - 0.9995) > 1e-9)
    first, second = 1 - t, t
    if abs(cosine) < 0.9995:
        theta = math.acos(cosine)
        first, second = math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)
    expected = torch.tensor([first * p + second * q for p, q in zip(b, x, strict=True)], dtype=torch.float64)
    torch.testing.assert_close(run("slerp", base, [other], t=t), expected, **close)


def test_slerp_between_unit_vectors_stays_on_the_sphere():
    base, other = (v / v.norm() for v in random_tensors(2))
    merged = run("slerp", base, [other], t=0.3)
    assert merged.norm().item() == pytest.approx(1.0)
    assert angle(base, merged) == pytest.approx(0.3 * angle(base, other))


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("keys", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}])
def test_nuslerp_equals_a_vector_by_vector_implementation(with_base, keys):
    base, one, two = random_tensors(3, (4, 5))
    origin = base if with_base else torch.zeros_like(base)
    a, b = one - origin, two - origin
    if not keys:
        vectors = [(a.flatten(), b.flatten())]
    elif "nuslerp_row_wise" in keys:
        vectors = [(a[:, j], b[:, j]) for j in range(5)]
    else:
        vectors = [(a[i], b[i]) for i in range(4)]
    t, merged = 0.75, []
    for u, v in vectors:
        theta = angle(u, v)
        merged.append((math.sin((1 - t) * theta) * u + math.sin(t * theta) * v) / math.sin(theta))
    stacked = torch.stack(merged, dim=1 if "nuslerp_row_wise" in keys else 0).reshape(4, 5)
    found = run("nuslerp", base if with_base else None, [one, two], weighted([1, 3]), **keys)
    torch.testing.assert_close(found, origin + stacked, **close)


def test_nuslerp_of_parallel_vectors_is_linear():
    (one,) = random_tensors(1)
    for keys in ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}):
        torch.testing.assert_close(run("nuslerp", None, [one, 3 * one], **keys), 2 * one, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keys", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}])
def test_nuslerp_of_opposite_vectors_is_linear(dtype, keys):
    """Rounding leaves their cosine a hair above -1, where the arc's coefficients would be as large as 1e8."""
    for seed in range(5):
        one = random_tensors(1, (32, 32), seed)[0].to(dtype)
        found = run("nuslerp", None, [one, -2 * one], weighted([1, 3]), **keys)
        torch.testing.assert_close(found, one * 0.25 - one * 1.5)
