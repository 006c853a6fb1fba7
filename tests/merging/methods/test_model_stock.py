"""model_stock, against its formula."""

import itertools
import math

import pytest
import torch

from tests.merging.methods.naive import angle, random_tensors, run


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
