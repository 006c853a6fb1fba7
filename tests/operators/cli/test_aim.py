"""`mergeflow aim` on merged checkpoints that mergekit made, against the published code's recorded results."""

import shutil
from pathlib import Path

import pytest
import torch

from merging import aim
from merging.digest import model_digest, model_files
from merging.tensor_file import load_tensors, save_tensors

ORACLE = Path(__file__).parents[2] / "oracle"
OMEGAS = [0.0, 0.2, 0.4, 0.6, 1.0]
MERGES = ["task_arithmetic", "ties", "ties_d0.2", "dare_linear_d0.3", "dare_ties_d0.3", "widen"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, and how to put a case's base there and one of its merges as `merged`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("merging.engine.postflight", lambda folder: None)

    def fill(case: str, weights: Path, like: str = "base") -> Path:
        shutil.copytree(ORACLE / case / "inputs" / "base", tmp_path / "base")
        shutil.copytree(ORACLE / case / "inputs" / like, tmp_path / "merged")
        shutil.copyfile(weights, tmp_path / "merged" / "model.safetensors")
        statistics, _ = load_tensors(ORACLE / case / "stats" / "base_scale.safetensors")
        save_tensors(tmp_path / "s", statistics, {"model": model_digest(model_files(tmp_path / "base"))})
        return tmp_path

    return fill


def weights(folder) -> dict[str, torch.Tensor]:
    return load_tensors(Path(folder) / "model.safetensors")[0]


@pytest.mark.parametrize("label", MERGES)
def test_every_omega_in_one_pass_equals_the_recorded(run, folder, label):
    outputs = ORACLE / "llama_f32" / "outputs"
    here = folder("llama_f32", outputs / f"{label}.safetensors")
    asked = [part for omega in OMEGAS for part in ("--omega", omega)]
    status, out, _ = run("aim", "merged", "out", "--base", "base", "--statistics", "s", *asked)
    assert status == 0
    assert len([line for line in out.splitlines() if line.startswith("out/")]) == len(OMEGAS)
    for omega in OMEGAS:
        found = weights(here / "out" / f"omega-{omega:g}")
        expected, _ = load_tensors(outputs / f"{label}__aim_w{omega}.safetensors")
        assert set(found) == set(expected)
        assert max((found[name] - expected[name]).abs().max().item() for name in expected) <= 1e-6


def relaxed(base, merged, statistics, omega, tied):
    """The formula in float64, rounded once."""
    found = {}
    for name, tensor in merged.items():
        module = aim.module_of(name, tied)
        exact = tensor.double()
        if module:
            exact = aim.relax(base[name].double(), exact, statistics[module].double(), omega)
        found[name] = exact.to(tensor.dtype)
    return found


def test_a_tied_embedding_is_relaxed_with_the_heads_statistics(run, folder):
    here = folder("qwen2_tied_bf16", ORACLE / "qwen2_tied_bf16" / "outputs" / "task_arithmetic.safetensors")
    status, out, _ = run("aim", "merged", "out", "--base", "base", "--statistics", "s", "--omega", 0.4)
    assert status == 0
    assert out.startswith("out: ")
    statistics = load_tensors(here / "s")[0]
    merged, found = weights("merged"), weights("out")
    expected = relaxed(weights("base"), merged, statistics, 0.4, tied=True)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == torch.bfloat16
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=2**-8, atol=1e-6)
    assert not torch.equal(found["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])
    biases = [name for name in merged if name.endswith(".bias")]
    assert biases
    assert all(torch.equal(found[name], merged[name]) for name in biases)


def test_added_tokens_stay_and_relax_towards_the_mean_row(run, folder):
    """A merge with rows the base lacks: its tokenizer and rows are kept."""
    inputs = ORACLE / "llama_addtok_bf16" / "inputs"
    here = folder("llama_addtok_bf16", inputs / "ft_instruct" / "model.safetensors", like="ft_instruct")
    status, out, _ = run("aim", "merged", "out", "--base", "base", "--statistics", "s")
    assert status == 0
    base, merged, found = weights("base"), weights("merged"), weights("out")
    rows = len(base["lm_head.weight"])
    assert len(merged["lm_head.weight"]) == len(found["lm_head.weight"]) > rows
    mean = base["lm_head.weight"].double().mean(0).bfloat16()
    base["lm_head.weight"] = torch.cat([base["lm_head.weight"], mean.expand(len(merged["lm_head.weight"]) - rows, -1)])
    expected = relaxed(base, merged, load_tensors(here / "s")[0], 0.4, tied=False)
    torch.testing.assert_close(
        found["lm_head.weight"].float(), expected["lm_head.weight"].float(), rtol=2**-8, atol=1e-6
    )
    assert torch.equal(found["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])
    assert (here / "out" / "tokenizer.json").read_bytes() == (here / "merged" / "tokenizer.json").read_bytes()
    assert "note: base: has no row for" in out


def test_the_base_can_be_calibrated_on_the_way(run, models, monkeypatch):
    monkeypatch.chdir(models)
    monkeypatch.setattr("merging.engine.postflight", lambda folder: None)
    (models / "t.jsonl").write_text('{"text": "one plus one is two"}\n' * 20)
    arguments = ["--texts", "t.jsonl", "--block", 16, "--samples", 20]
    assert run("aim", "math", "one", "--base", "base", *arguments)[0] == 0
    assert run("calibrate", "base", "s", *arguments)[0] == 0
    assert run("aim", "math", "two", "--base", "base", "--statistics", "s")[0] == 0
    assert (models / "one" / "model.safetensors").read_bytes() == (models / "two" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["math", "out", "--base", "base"], "name either --statistics"),
        (["base", "out", "--base", "./base", "--statistics", "s"], "are one folder"),
        (["math", "out", "--base", "base", "--statistics", "none"], "none: cannot be read"),
        (["nothing", "out", "--base", "base", "--statistics", "s"], "nothing: no weights"),
    ],
)
def test_what_is_refused(refused, models, monkeypatch, arguments, expected):
    monkeypatch.chdir(models)
    before = sorted(models.iterdir())
    assert expected in refused("aim", *arguments)
    assert sorted(models.iterdir()) == before
