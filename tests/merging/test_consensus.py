"""Mutual information of two models' outputs against a second computation: hooks, and scikit-learn's estimator."""

import json

import pytest
import torch
from sklearn.metrics import mutual_info_score

from merging.acm import Consensus, module_of
from merging.calibration.stream import NotStreamable
from merging.checkpoint import Checkpoint
from merging.consensus import measure, text_samples, watch
from merging.digest import model_digest, model_files
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


@pytest.fixture
def run(tmp_path):
    """`run(base, against, **settings)` measures the two on the samples."""

    def measured(base, against, samples=SAMPLES, **settings) -> Consensus:
        return measure(base, against, samples, tmp_path / "consensus", digests=("b", "x"), **settings)

    return measured


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
def test_equals_whole_models_and_scikit_learn(pair, run, name):
    folders = pair(name)
    found = run(*folders)
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
def test_float32_models_are_rounded_at_their_outputs(pair, run):
    folders = pair("llama")
    found = run(*folders, dtype=torch.float32)
    [values] = expected(folders, ["lm_head"], torch.float32).values()
    assert found.information["lm_head"].tolist() == pytest.approx(values, abs=1e-9)


def test_a_model_against_itself_has_its_entropy(pair, run):
    base, _ = pair("llama")
    found = run(base, base, samples=SAMPLES[:1])
    ids = SAMPLES[0]
    rows = load_tensors(base / "model.safetensors")[0]["model.embed_tokens.weight"][ids].bfloat16()
    counts = torch.unique(rows, return_counts=True)[1].double() / rows.numel()
    assert found.information["model.embed_tokens"].item() == pytest.approx(float(-(counts * counts.log()).sum()))


def test_added_rows_of_the_head_are_left_out(pair, run, tmp_path):
    base, against = pair("llama")
    before = run(base, against)
    tensors, metadata = load_tensors(against / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(3, 32)])
    save_tensors(against / "model.safetensors", tensors, metadata)
    config = json.loads((against / "config.json").read_text())
    (against / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    after = run(base, against)
    assert all(torch.equal(before.information[name], after.information[name]) for name in before.information)


def test_progress_ends_at_the_whole(pair, run):
    told = []
    run(*pair("llama"), progress=lambda *one: told.append(one))
    assert told[-1] == (15, 15, "consensus, part 5 of 5")
    assert [done for done, _, _ in told] == list(range(1, 16))


def test_models_that_do_not_fit_are_refused(pair, run, tmp_path):
    base, _ = pair("llama")
    other = make_model("llama", tmp_path / "other", hidden_size=16)
    with pytest.raises(InputError, match="has shape"):
        run(base, other)


def test_an_activation_that_is_nan_is_named(pair, run):
    base, against = pair("llama")
    tensors, metadata = load_tensors(against / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_tensors(against / "model.safetensors", tensors, metadata)
    with pytest.raises(InputError, match=r"against: the output of model.layers.1.mlp.down_proj is NaN"):
        run(base, against)


def test_a_layer_without_an_mlp_is_refused(pair, run, monkeypatch):
    def without_second(name, module):
        return None if ".1." in name else watch(name, module)

    monkeypatch.setattr("merging.consensus.watch", without_second)
    with pytest.raises(InputError, match="no MLP was found in decoder layer 1"):
        run(*pair("llama"))


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


def test_the_file_keeps_what_was_measured(pair, tmp_path):
    base, against = pair("llama")
    found = measure(base, against, SAMPLES, tmp_path / "c", metadata={"texts": "t"})
    again = Consensus.load(tmp_path / "c")
    assert all(torch.equal(again.information[name], values) for name, values in found.information.items())
    assert (again.base, again.against) == tuple(model_digest(model_files(one)) for one in (base, against))
    metadata = load_tensors(tmp_path / "c")[1]
    assert (metadata["texts"], metadata["dtype"]) == ("t", "bfloat16")
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("broken_at", [4, 11, 14])
def test_an_interrupted_run_goes_on_from_the_last_layer(pair, run, monkeypatch, broken_at):
    folders = pair("llama")
    first = run(*folders)
    monkeypatch.setattr("merging.calibration.partial.ALWAYS", 1000)
    told = []

    def stop(*one):
        told.append(one[0])
        if one[0] == broken_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*folders, progress=stop)
    told.clear()
    again = run(*folders, progress=lambda *one: told.append(one[0]))
    assert told[0] == broken_at // 3 * 3 + 1
    assert all(torch.equal(first.information[name], values) for name, values in again.information.items())


def test_models_that_cannot_be_streamed_are_run_whole(pair, run, monkeypatch):
    folders = pair("llama")
    streamed = run(*folders)

    def refuse(*_, **__):
        raise NotStreamable("no")

    monkeypatch.setattr("merging.consensus.stream", refuse)
    found = run(*folders)
    assert set(found.information) == set(streamed.information)
    assert all(torch.equal(found.information[name], values) for name, values in streamed.information.items())
