"""task_arithmetic, against its closed form."""

import torch

from tests.merging.methods.naive import close, random_tensors, run, weighted


def test_task_arithmetic_in_closed_form():
    base, one, two = random_tensors(3)
    merged = run("task_arithmetic", base, [one, two], weighted([0.5, -2.0]), **{"lambda": 0.3})
    torch.testing.assert_close(merged, base + 0.3 * (0.5 * (one - base) - 2.0 * (two - base)), **close)
