"""ram, by hand."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.merging.methods.naive import base_and_experts, close, run


def test_ram_averages_what_several_changed():
    base = torch.zeros(4, dtype=torch.float64)
    one, two = torch.tensor([[3.0, 1.0, 0.0, 1e-6], [0.0, 2.0, 0.0, 5.0]], dtype=torch.float64)
    assert run("ram", base, [one, two]).tolist() == [3.0, 1.5, 0.0, 5.0]


@given(base_and_experts(), st.sampled_from([0.0, 1e-5, 1.5]))
@settings(max_examples=100, deadline=None)
def test_ram_equals_a_naive_implementation(inputs, epsilon):
    base, experts, _ = inputs
    expected = []
    for i, b in enumerate(base.tolist()):
        changes = [change for expert in experts if abs(change := expert[i].item() - b) > epsilon]
        expected.append(b + (sum(changes) / len(changes) if changes else 0.0))
    found = run("ram", base, experts, epsilon=epsilon)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **close)
