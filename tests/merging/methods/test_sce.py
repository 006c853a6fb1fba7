"""sce, against a naive implementation."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import base_and_experts, run


@given(base_and_experts(), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_sce_equals_a_naive_implementation(inputs, topk):
    base, experts, _ = inputs
    deltas = torch.stack([expert - base for expert in experts])
    variance = (deltas - deltas.mean(dim=0)).square().mean(dim=0)
    if topk < 1:
        count = int(int((variance != 0).sum()) * topk)
        order = sorted(range(base.numel()), key=lambda i: (-variance[i].item(), i))
        deltas = deltas * torch.tensor([i in set(order[:count]) for i in range(base.numel())])
    weights = deltas.square().mean(dim=1) if base.numel() else torch.zeros(len(experts), dtype=torch.float64)
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else torch.full_like(weights, 1 / len(experts))
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    shares = weights[:, None] * (deltas.sign() == sign)
    expected = base + (deltas * shares).sum(0) / shares.sum(0).clamp(min=1e-6)
    torch.testing.assert_close(run("sce", base, experts, select_topk=topk), expected, rtol=1e-9, atol=1e-9)
