"""AIM's closed forms; the recorded runs are in test_oracle."""

import torch

from merging.aim import importance, module_of, relax


def test_relaxation_in_closed_form():
    base, merged, s = torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([4.0, 2.0, 0.0])
    assert importance(s).tolist() == [1.0, 0.5, 0.0]
    torch.testing.assert_close(relax(base, merged, s, 0.4), torch.tensor([[0.4, 0.7, 1.0]] * 2))
    assert torch.equal(relax(base, merged, s, 1.0), merged)
    assert relax(base, merged, s, 0.0)[:, 0].tolist() == [0.0, 0.0]


def test_a_module_that_never_fires_is_left_as_merged():
    base, merged = torch.randn(4), torch.randn(4)
    torch.testing.assert_close(relax(base, merged, torch.zeros(4), 0.4), merged)


def test_which_tensors_are_relaxed():
    assert module_of("model.layers.0.mlp.up_proj.weight", tied=False) == "model.layers.0.mlp.up_proj"
    assert module_of("model.layers.0.self_attn.q_proj.bias", tied=False) is None
    assert module_of("model.embed_tokens.weight", tied=False) is None
    assert module_of("model.embed_tokens.weight", tied=True) == "lm_head"
    assert module_of("lm_head.weight", tied=False) == "lm_head"
