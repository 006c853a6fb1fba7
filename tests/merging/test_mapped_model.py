"""A mapped model is the model that transformers loads, and lies in the pages of its files."""

import shutil

import pytest
import torch
import transformers

from merging.errors import InputError
from merging.mapped_model import MappedModel
from merging.postflight import check_generates
from merging.tensor_file import load_tensors, save_tensors
from tests.merging.architectures import ARCHITECTURES, make_model
from tests.merging.memory import growth

IDS = torch.arange(3, 33)[None]


def loaded(folder, **options):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    return model.eval(), info


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_computes_what_a_loaded_model_does(name, tmp_path):
    make_model(name, tmp_path, torch.bfloat16)
    for dtype in (None, torch.float32):
        expected, info = loaded(tmp_path, dtype=dtype or "auto")
        mapped = MappedModel(tmp_path, dtype)
        assert (mapped.missing, mapped.unexpected) == (info["missing_keys"], info["unexpected_keys"]) == (set(), set())
        for load in (mapped.load_as_used, mapped.load_all):
            load()
            assert torch.equal(mapped.model(IDS).logits, expected(IDS).logits)
        buffers = dict(expected.named_buffers())
        assert all(torch.equal(buffer, buffers[key]) for key, buffer in mapped.model.named_buffers())


@pytest.mark.parametrize("name", ["llama", "gemma3", "pythia", "mixtral"])
def test_its_weights_are_the_checkpoint_s_pages(name, tmp_path):
    mapped = MappedModel(make_model(name, tmp_path))
    mapped.load_all()
    pages = {mapped.checkpoint.read(tensor).data_ptr() for tensor in mapped.checkpoint.entries}
    copied = {key for key, parameter in mapped.model.named_parameters() if parameter.data_ptr() not in pages}
    assert all(".experts." in key for key in copied)


def test_a_tie_is_kept_and_one_the_weights_contradict_is_not(tmp_path):
    folder = make_model("qwen2", tmp_path)
    mapped = MappedModel(folder)
    mapped.load_all()
    assert mapped.model.lm_head.weight is mapped.model.model.embed_tokens.weight
    tensors, _ = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    mapped = MappedModel(folder)
    mapped.load_all()
    assert torch.equal(mapped.model.lm_head.weight, loaded(folder)[0].lm_head.weight)


def test_what_is_missing_or_too_much_is_what_transformers_says(tmp_path):
    folder = make_model("mixtral", tmp_path)
    tensors, _ = load_tensors(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.other.weight"] = torch.zeros(2)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(2)
    save_tensors(folder / "model.safetensors", tensors)
    mapped, (_, info) = MappedModel(folder), loaded(folder)
    assert mapped.missing == info["missing_keys"] == {"model.norm.weight"}
    assert mapped.unexpected == info["unexpected_keys"] == {"model.layers.0.other.weight"}


def test_another_shape_is_told(tmp_path):
    folder = make_model("llama", tmp_path)
    tensors, _ = load_tensors(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(31)
    save_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(InputError, match=r"model.norm.weight has shape \[31\], but the configuration asks for \[32\]"):
        MappedModel(folder).load_all()


def test_an_expert_that_is_missing_is_told(tmp_path):
    folder = make_model("mixtral", tmp_path)
    tensors, _ = load_tensors(folder / "model.safetensors")
    del tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_tensors(folder / "model.safetensors", tensors)
    says = r"layers.1.mlp.experts.gate_up_proj is made of 4 tensors of shape \[48, 32\] for each part, found 3"
    with pytest.raises(InputError, match=says):
        MappedModel(folder).load_all()


@pytest.mark.parametrize(
    ("name", "layer"),
    [("llama", 0), ("mixtral", 1)],  # a mixture's experts are put into one tensor, a layer at a time
)
def test_generating_takes_no_memory_of_the_model_s_size(name, layer, tmp_path):
    check_generates(make_model(name, tmp_path / "warm", torch.bfloat16))
    sizes = {"vocab_size": 16000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    folder = make_model(name, tmp_path / "large", torch.bfloat16, **sizes)
    bytes_of_layer = layer * (4 * 3 * 2048 * 512 + 2 * 512**2) * 2
    with growth() as added:
        check_generates(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 100e6
    assert added[0] < 20e6 + 2 * bytes_of_layer
    shutil.rmtree(folder)
