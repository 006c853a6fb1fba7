"""Postflight refuses what does not load or generate."""

import shutil

import pytest
import torch

from merging.errors import InputError
from merging.postflight import postflight
from merging.tensor_file import load_tensors, save_tensors


@pytest.fixture
def folder(oracle, tmp_path):
    shutil.copytree(oracle("llama_f32").model("base"), tmp_path / "model")
    return tmp_path / "model"


def test_a_whole_model_passes(folder):
    assert postflight(folder) is None


def test_a_missing_tensor_is_told(folder):
    tensors, _ = load_tensors(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"do not agree.*model.norm.weight"):
        postflight(folder)


def test_a_nan_is_named_and_so_is_a_missing_config(folder):
    tensors, _ = load_tensors(folder / "model.safetensors")
    tensors["lm_head.weight"][1, 2] = torch.nan
    save_tensors(folder / "model.safetensors", tensors)
    (folder / "config.json").unlink()
    with pytest.raises(InputError) as caught:
        postflight(folder)
    assert len(caught.value.problems) == 2
    assert "lm_head.weight" in str(caught.value)
    assert "config.json" in str(caught.value)


def test_a_tokenizer_that_does_not_load_is_refused(folder):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="does not generate"):
        postflight(folder)


def test_only_a_few_of_many_overflowed_tensors_are_listed(folder):
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", {n: torch.full_like(t, torch.inf) for n, t in tensors.items()})
    with pytest.raises(InputError) as caught:
        postflight(folder)
    assert len(caught.value.problems) == 6
    assert f"and {len(tensors) - 5} more tensors" in caught.value.problems[-1]
