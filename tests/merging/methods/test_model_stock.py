"""model_stock, against its formula."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings

from tests.merging.methods.naive import angle, base_and_experts, random_tensors, run


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_as_far_as_the_angle_says(filter_wise):
    base, *experts = random_tensors(4, (4, 6))
    rows = zip(base, *experts, strict=True) if filter_wise else [(base, *experts)]
    merged = []
    for b, *xs in rows:
        cosine = sum(math.cos(angle(x - b, y - b)) for x, y in itertools.combinations(xs, 2)) / 3
        t = 3 * cosine / (1 + 2 * cosine)
        merged.append(t * sum(xs) / 3 + (1 - t) * b)
    expected = torch.stack(merged).reshape(base.shape)
    torch.testing.assert_close(
        run("model_stock", base, experts, filter_wise=filter_wise), expected, rtol=1e-9, atol=1e-9
    )


@given(base_and_experts())
@settings(max_examples=100, deadline=None)
def test_model_stock_equals_a_naive_implementation(inputs):
    """Deltas of no length have no angle: their cosine counts as 0."""
    base, experts, _ = inputs
    assume(len(experts) > 1)
    deltas = [[x - b for x, b in zip(expert.tolist(), base.tolist(), strict=True)] for expert in experts]
    cosines = []
    for one, two in itertools.combinations(deltas, 2):
        inner, first, second = (
            math.fsum(a * b for a, b in zip(*pair, strict=True)) for pair in ((one, two), (one, one), (two, two))
        )
        cosines.append(max(-1.0, min(1.0, inner / max(math.sqrt(first * second), 1e-6))))
    cosine, count = sum(cosines) / len(cosines), len(deltas)
    divisor = 1 + (count - 1) * cosine
    assume(divisor == 0 or abs(divisor) > 1e-3)
    t = count * cosine / divisor if divisor else 0.0
    expected = [b + t * sum(delta[i] for delta in deltas) / count for i, b in enumerate(base.tolist())]
    found = run("model_stock", base, experts)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)
