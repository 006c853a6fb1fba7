"""linear, against its closed form."""

import torch

from tests.merging.methods.naive import run, weighted


def test_linear_is_the_weighted_mean():
    experts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    assert run("linear", None, experts, weighted([1, 3])).tolist() == [2.5, 5.0]
    assert run("linear", None, experts, weighted([1, 3]), normalize=False).tolist() == [10.0, 20.0]
