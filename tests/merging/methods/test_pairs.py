"""nearswap, arcee_fusion and passthrough, against their formulas."""

import torch

from tests.merging.methods.naive import close, random_tensors, run


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
