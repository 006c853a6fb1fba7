"""dare_linear and dare_ties, given their masks."""

import pytest
import torch

from merging.methods.random import keep_mask
from tests.merging.methods.naive import close, naive_election, random_tensors, run, weighted


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", ["density", "l1", "none"])
def test_dare_drops_by_its_masks_and_rescales(name, rescale):
    base, *experts = random_tensors(4, (40, 30))
    found = run(name, base, experts, weighted([1, 0.5, 2]), density=0.3, rescale=rescale, seed=7)
    deltas = []
    for i, expert in enumerate(experts):
        delta = expert - base
        kept = delta * (keep_mask(delta, 0.3, 7, f"expert-{i}", "w") != 0)
        scale = {"density": 1 / 0.3, "l1": (delta.abs().sum() / kept.abs().sum()).item(), "none": 1.0}[rescale]
        deltas.append(kept * scale)
    if name == "dare_linear":
        expected = base + sum(w * d for w, d in zip([1, 0.5, 2], deltas, strict=True))
    else:
        flat = naive_election(base.flatten(), [d.flatten().tolist() for d in deltas], [1, 0.5, 2], False)
        expected = flat.view(base.shape)
    torch.testing.assert_close(found, expected, **close)


def test_dare_at_density_one_is_task_arithmetic():
    base, *experts = random_tensors(3)
    assert torch.equal(run("dare_linear", base, experts), run("task_arithmetic", base, experts))
