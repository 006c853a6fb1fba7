"""ram, by hand."""

import torch

from tests.merging.methods.naive import run


def test_ram_averages_what_several_changed():
    base = torch.zeros(4, dtype=torch.float64)
    one, two = torch.tensor([[3.0, 1.0, 0.0, 1e-6], [0.0, 2.0, 0.0, 5.0]], dtype=torch.float64)
    assert run("ram", base, [one, two]).tolist() == [3.0, 1.5, 0.0, 5.0]
