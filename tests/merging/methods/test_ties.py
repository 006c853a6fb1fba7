"""ties, against a naive implementation, and over the whole model against the published rule."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import base_and_experts, close, naive_election, run, weighted


def naive_ties(base, experts, weights, density, normalize, scale):
    """TIES element by element, in plain Python."""
    kept = []
    for expert in experts:
        delta = [float(x) - float(b) for x, b in zip(expert, base, strict=True)]
        order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
        largest = set(order[: int(density * len(delta))])
        kept.append([d if i in largest else 0.0 for i, d in enumerate(delta)])
    return naive_election(base, kept, weights, normalize, scale)


@given(base_and_experts(), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans(), st.sampled_from([1.0, 0.3]))
@settings(max_examples=200, deadline=None)
def test_ties_equals_a_naive_implementation(inputs, density, normalize, scale):
    base, experts, weights = inputs
    keys = {"density": density, "normalize": normalize, "lambda": scale}
    found = run("ties", base, experts, weighted(weights), **keys)
    torch.testing.assert_close(found, naive_ties(base, experts, weights, density, normalize, scale), **close)


@given(base_and_experts(), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_trimming_over_the_model_is_mergelms_rule(inputs, density):
    """One tensor is the whole model here: `|d| >=` the k-th smallest, and the majority's sign where a sum is 0."""
    base, experts, _ = inputs
    found = run("ties", base, experts, density=density, trim="model")
    if base.numel() == 0:
        assert found.numel() == 0
        return
    deltas = torch.stack([expert - base for expert in experts])
    k = int(base.numel() * (1 - density))
    cuts = deltas.abs().sort(dim=1).values[:, k - 1 : k] if k else torch.zeros(len(experts), 1)
    deltas = deltas * (deltas.abs() >= cuts)
    sign = deltas.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agreeing = deltas * (deltas * sign > 0)
    expected = base + agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    torch.testing.assert_close(found, expected, **close)
