"""nearswap, arcee_fusion and passthrough, against their formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import base_and_experts, close, random_tensors, run


def test_nearswap_takes_what_is_near():
    base, other = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.1, 2.0, 1.0])
    torch.testing.assert_close(run("nearswap", base, [other], t=0.5), torch.tensor([0.1, 0.5, 1.0]))


def test_arcee_fusion_takes_the_important_changes():
    base, other = random_tensors(2, (20, 11))
    p, q = other.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    score = (other - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = score.flatten().sort().values
    q1, median, q3 = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    expected = torch.where(score >= median + 1.5 * (q3 - q1), other, base)
    assert 0 < int((expected != base).sum()) < base.numel()
    torch.testing.assert_close(run("arcee_fusion", base, [other]), expected, **close)


def test_passthrough_scales():
    (one,) = random_tensors(1)
    assert torch.equal(run("passthrough", None, [one]), one)
    assert torch.equal(run("passthrough", None, [one], scale=0.5), one * 0.5)


@given(base_and_experts(most=2), st.sampled_from([0.0, 1e-4, 0.5, 10.0]))
@settings(max_examples=100, deadline=None)
def test_nearswap_equals_a_naive_implementation(inputs, t):
    base, (other,), _ = inputs
    expected = []
    for b, x in zip(base.tolist(), other.tolist(), strict=True):
        share = min(1.0, t / max(abs(x - b), 1e-6))
        expected.append(share * x + (1 - share) * b)
    found = run("nearswap", base, [other], t=t)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **close)


@given(base_and_experts(most=2))
@settings(max_examples=100, deadline=None)
def test_arcee_fusion_equals_a_naive_implementation(inputs):
    base, (other,), _ = inputs
    b, x = base.tolist(), other.tolist()
    p, q = naive_softmax(x), naive_softmax(b)
    divergence = math.fsum(one * math.log(one / two) for one, two in zip(p, q, strict=True))
    scores = [max(abs(new - old) * divergence, 0.0) for old, new in zip(b, x, strict=True)]
    ordered = sorted(scores)
    q1, median, q3 = (ordered[int(part * (len(b) - 1))] if b else 0.0 for part in (0.25, 0.5, 0.75))
    cut = median + 1.5 * (q3 - q1)
    found = run("arcee_fusion", base, [other]).tolist()
    for old, new, score, made in zip(b, x, scores, found, strict=True):
        if abs(score - cut) > 1e-9 * max(abs(cut), 1e-9):  # at the cut the last bit of a score decides
            assert made == pytest.approx(new if score >= cut else old, rel=1e-12, abs=1e-12)


def naive_softmax(values):
    largest = max(values, default=0.0)
    powers = [math.exp(value - largest) for value in values]
    return [power / math.fsum(powers) + 1e-8 for power in powers]
