"""Mutual information of two models' outputs against a second computation: hooks, and scikit-learn's estimator."""

import json

import pytest
import torch
from sklearn.metrics import mutual_info_score

from merging.acm import Consensus, module_of
from merging.checkpoint import Checkpoint
from merging.consensus import measure, text_samples, watch
from merging.errors import InputError
from merging.tensor_file import load_tensors, save_tensors
from tests.merging.architectures import ARCHITECTURES, make_model

SAMPLES = [torch.arange(3, 3 + length) * 7 % 97 for length in (5, 17, 11)]
LAYER = "model.layers.{}.mlp.down_proj"
LAYERS = {
    "pythia": ["gpt_neox.layers.{}.mlp.dense_4h_to_h"] * 3,
    "gpt_neox_sequential": ["gpt_neox.layers.{}.mlp.dense_4h_to_h"] * 3,
    "mixtral": ["model.layers.{}.mlp"] * 3,
    "qwen3_moe": ["model.layers.{}.mlp", LAYER, "model.layers.{}.mlp"],
    "gemma3": [LAYER] * 4,
}
OUTSIDE = {"pythia": ["gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"]}
OUTSIDE["gpt_neox_sequential"] = OUTSIDE["pythia"]
CHECKPOINTS_NAMES = {("gpt_neox", "lm_head"): "embed_out"}


@pytest.fixture
def pair(tmp_path):
    """`pair(name)` makes a random model of an architecture, and one near it."""

    def make(name: str, **changes):
        base = make_model(name, tmp_path / "base", **changes)
        against = make_model(name, tmp_path / "against", **changes)
        tensors, metadata = load_tensors(against / "model.safetensors")
        generator = torch.Generator().manual_seed(0)
        moved = {n: t + 0.02 * torch.randn(t.shape, generator=generator) for n, t in tensors.items()}
        save_tensors(against / "model.safetensors", moved, metadata)
        return base, against

    return make


def expected(folders, modules, dtype) -> dict[str, list[float]]:
    """Whole models in transformers, and what their modules give on each sample, through scikit-learn."""
    import transformers

    seen = [{}, {}]
    for folder, kept in zip(folders, seen, strict=True):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        for own, module in model.named_modules():
            own = CHECKPOINTS_NAMES.get((model.config.model_type, own), own)
            if own in modules:

                def keep(_module, _inputs, output, own=own, kept=kept):
                    output = output[0] if isinstance(output, tuple) else output
                    kept.setdefault(own, []).append(output.bfloat16().float().flatten().numpy())

                module.register_forward_hook(keep)
        with torch.no_grad():
            for ids in SAMPLES:
                model(ids[None], use_cache=False)
    return {
        name: [mutual_info_score(a, b) for a, b in zip(seen[0][name], seen[1][name], strict=True)] for name in modules
    }


@pytest.mark.filterwarnings("ignore:Clustering metrics expects", "ignore:The number of unique classes")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_whole_models_and_scikit_learn(pair, name):
    folders = pair(name)
    found = measure(*folders, SAMPLES, ("b", "x"))
    layers = [layer.format(i) for i, layer in enumerate(LAYERS.get(name, [LAYER] * 3))]
    outside = OUTSIDE.get(name, ["model.embed_tokens", "model.norm", "lm_head"])
    without_weight = {"olmo": {"model.norm"}}.get(name, set())
    modules = {*layers, *outside} - without_weight
    assert set(found.information) == modules
    for module, values in expected(folders, modules, torch.bfloat16).items():
        assert found.information[module].tolist() == pytest.approx(values, abs=1e-9)
    assert found.lengths == [5, 17, 11]
    # so that a merge finds a lambda for every tensor
    tensors = [tensor for tensor in Checkpoint(folders[0]).entries if "inv_freq" not in tensor]
    assert all(module_of(tensor, found.information) for tensor in tensors)


@pytest.mark.filterwarnings("ignore:Clustering metrics expects", "ignore:The number of unique classes")
def test_float32_models_are_rounded_at_their_outputs(pair):
    folders = pair("llama")
    found = measure(*folders, SAMPLES, ("b", "x"), dtype=torch.float32)
    [values] = expected(folders, ["lm_head"], torch.float32).values()
    assert found.information["lm_head"].tolist() == pytest.approx(values, abs=1e-9)


def test_a_model_against_itself_has_its_entropy(pair):
    base, _ = pair("llama")
    found = measure(base, base, SAMPLES[:1], ("b", "b"))
    ids = SAMPLES[0]
    rows = load_tensors(base / "model.safetensors")[0]["model.embed_tokens.weight"][ids].bfloat16()
    counts = torch.unique(rows, return_counts=True)[1].double() / rows.numel()
    assert found.information["model.embed_tokens"].item() == pytest.approx(float(-(counts * counts.log()).sum()))


def test_added_rows_of_the_head_are_left_out(pair, tmp_path):
    base, against = pair("llama")
    before = measure(base, against, SAMPLES, ("b", "x"))
    tensors, metadata = load_tensors(against / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(3, 32)])
    save_tensors(against / "model.safetensors", tensors, metadata)
    config = json.loads((against / "config.json").read_text())
    (against / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    after = measure(base, against, SAMPLES, ("b", "x"))
    assert all(torch.equal(before.information[name], after.information[name]) for name in before.information)


def test_progress_ends_at_the_whole(pair):
    told = []
    measure(*pair("llama"), SAMPLES, ("b", "x"), progress=lambda *one: told.append(one))
    assert told[-1] == (15, 15, "part 5 of 5")
    assert [done for done, _, _ in told] == list(range(1, 16))


def test_models_that_do_not_fit_are_refused(pair, tmp_path):
    base, _ = pair("llama")
    other = make_model("llama", tmp_path / "other", hidden_size=16)
    with pytest.raises(InputError, match="has shape"):
        measure(base, other, SAMPLES, ("b", "x"))


def test_an_activation_that_is_nan_is_named(pair):
    base, against = pair("llama")
    tensors, metadata = load_tensors(against / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_tensors(against / "model.safetensors", tensors, metadata)
    with pytest.raises(InputError, match=r"against: the output of model.layers.1.mlp.down_proj is NaN"):
        measure(base, against, SAMPLES, ("b", "x"))


def test_a_layer_without_an_mlp_is_refused(pair, monkeypatch):
    def without_second(name, module):
        return None if ".1." in name else watch(name, module)

    monkeypatch.setattr("merging.consensus.watch", without_second)
    with pytest.raises(InputError, match="no MLP was found in decoder layer 1"):
        measure(*pair("llama"), SAMPLES, ("b", "x"))


def test_each_text_is_a_sample(oracle):
    base = oracle("llama_f32").model("base")
    texts = ["w5 w6", "w7", "w8 w9 w10 w11"]
    whole = text_samples(texts, base)
    assert [len(ids) for ids in whole] == [3, 2, 5]  # this tokenizer opens every text with a token
    assert [len(ids) for ids in text_samples(texts, base, longest=3)] == [3, 2, 3]
    assert [len(ids) for ids in text_samples(texts, base, samples=2)] == [3, 2]
    assert torch.equal(text_samples(texts, base, longest=3)[2], whole[2][:3])
    with pytest.raises(InputError, match="the texts give no token"):
        text_samples([], base)


def test_what_is_measured_can_be_kept(pair, tmp_path):
    found = measure(*pair("llama"), SAMPLES, ("b", "x"))
    found.save(tmp_path / "c")
    again = Consensus.load(tmp_path / "c")
    assert all(torch.equal(again.information[name], values) for name, values in found.information.items())
