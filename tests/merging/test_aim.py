"""AIM's closed forms, and whose statistics it takes; the recorded runs are in test_oracle."""

import pytest
import torch

from merging.aim import importance, module_of, relax
from merging.digest import model_digest, model_files
from merging.engine import merge
from merging.errors import InputError
from merging.recipe import Recipe
from merging.tensor_file import load_tensors, save_tensors


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


@pytest.mark.parametrize(
    ("of", "said"), [("base", None), ("two", "another model than the base base"), (None, "does not say")]
)
def test_whose_statistics_they_are_is_checked(family, tmp_path, without_postflight, of, said):
    tensors = load_tensors(family["base"] / "model.safetensors")[0]
    vectors = {n.removesuffix(".weight"): torch.rand(t.shape[-1]) for n, t in tensors.items() if "embed" not in n}
    about = {"model": model_digest(model_files(family[of]))} if of else {"format": "pt"}
    save_tensors(tmp_path / "s", vectors, about)
    recipe = Recipe.parse(
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [{"model": "one"}],
            "aim": {"statistics": str(tmp_path / "s")},
        }
    )
    if of == "two":
        with pytest.raises(InputError, match=said) as caught:
            merge(recipe, tmp_path / "out", models=family)
        assert str(tmp_path / "s") in str(caught.value)
        assert not (tmp_path / "out").exists()
        return
    notes = [note for note in merge(recipe, tmp_path / "out", models=family)["notes"] if note.startswith("aim: ")]
    assert [said in note for note in notes] == ([True] if said else [])
