"""breadcrumbs and breadcrumbs_ties, against a naive implementation."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import base_and_experts, close, naive_election, run, weighted


@given(base_and_experts(), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_breadcrumbs_equals_a_naive_implementation(inputs, density, gamma):
    base, experts, weights = inputs
    kept = []
    for expert in experts:
        delta, n = (expert - base).tolist(), base.numel()
        stay = n if density == 1 else int(density * n)
        order = sorted(range(n), key=lambda i: (-abs(delta[i]), i))
        outliers = min(int(gamma * n), n - stay)
        chosen = set(order[outliers : outliers + stay])
        kept.append([d if i in chosen else 0.0 for i, d in enumerate(delta)])
    keys = {"density": density, "gamma": gamma}
    linear = base + sum(w * torch.tensor(k, dtype=torch.float64) for w, k in zip(weights, kept, strict=True))
    torch.testing.assert_close(run("breadcrumbs", base, experts, weighted(weights), **keys), linear, **close)
    elected = naive_election(base, kept, weights, normalize=False)
    torch.testing.assert_close(run("breadcrumbs_ties", base, experts, weighted(weights), **keys), elected, **close)
