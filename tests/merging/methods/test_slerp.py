"""slerp and nuslerp, against the formula for two vectors."""

import math

import pytest
import torch

from tests.merging.methods.naive import angle, close, random_tensors, run, weighted


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_walks_the_arc(t):
    base, other = random_tensors(2)
    theta = angle(base, other)
    expected = (math.sin((1 - t) * theta) * base + math.sin(t * theta) * other) / math.sin(theta)
    torch.testing.assert_close(run("slerp", base, [other], t=t), expected, **close)


def test_slerp_is_linear_between_parallel_vectors():
    (base,) = random_tensors(1)
    torch.testing.assert_close(run("slerp", base, [3 * base], t=0.25), 1.5 * base, **close)


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
