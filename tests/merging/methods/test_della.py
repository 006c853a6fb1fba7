"""della and della_linear: who is kept with which probability, and what that does to the norm."""

import torch

from merging.methods.della import probabilities
from tests.merging.methods.naive import run


def test_della_keeps_by_rank_within_a_row():
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, -5.0]])
    expected = torch.tensor([[0.6, 0.4, 0.5], [0.4, 0.5, 0.6]])
    torch.testing.assert_close(probabilities(delta, 0.5, 0.1), expected)
    torch.testing.assert_close(probabilities(delta[0], 0.5, 0.1), expected[0])


def test_della_keeps_its_share_and_the_l1_norm():
    base, expert = torch.zeros(200, 300), torch.rand(200, 300) + 0.1
    merged = run("della_linear", base, [expert], density=0.4, epsilon=0.2)
    assert abs((merged != 0).double().mean().item() - 0.4) < 0.01
    torch.testing.assert_close(merged.sum(), expert.sum(), rtol=1e-4, atol=0)
    large = expert > expert.median()
    assert (merged[large] != 0).double().mean() > (merged[~large] != 0).double().mean() + 0.1
    by_probability = run("della_linear", base, [expert], density=0.4, epsilon=0.2, rescale="density")
    chance = probabilities(expert, 0.4, 0.2)
    kept = by_probability != 0
    torch.testing.assert_close(by_probability[kept], (expert / chance)[kept])
