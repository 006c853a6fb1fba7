"""`mergeflow consensus`, and a merge with what it made."""

import json

import pytest
import torch
import yaml

from merging.acm import Consensus, lambdas
from merging.tensor_file import save_tensors


@pytest.fixture
def folder(models, monkeypatch):
    """The current folder: two models and some texts."""
    monkeypatch.chdir(models)
    monkeypatch.setattr("merging.engine.postflight", lambda folder: None)
    texts = ["what is 1 + 2 ?", "3 * 4", "a longer text than the others , with more tokens in it"]
    (models / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return models


def test_a_file_is_made_and_told_of(run, folder):
    status, out, _ = run("consensus", "base", "math", "c", "--texts", "t.jsonl", "--device", "cpu")
    assert status == 0
    found = Consensus.load(folder / "c")
    first, *lines = out.splitlines()
    assert first.startswith(f"c: {len(found.information)} modules, 3 samples of {min(found.lengths)} to ")
    assert f"lambda {lambdas(found.information, 0.7)['lm_head']:.4f} at t 0.7" in out
    assert len(lines) == len(found.information)


def test_samples_and_longest_and_the_warning_of_equal_lengths(run, folder):
    options = ["--texts", "t.jsonl", "--samples", 2, "--longest", 3, "--dtype", "float32"]
    status, out, _ = run("consensus", "base", "math", "c", *options)
    assert status == 0
    assert Consensus.load(folder / "c").lengths == [3, 3]
    assert "note: acm: all 2 samples have 3 tokens" in out


def test_a_merge_takes_the_file(run, folder):
    assert run("consensus", "base", "math", "c", "--texts", "t.jsonl")[0] == 0
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "math"}]}
    (folder / "r.yaml").write_text(yaml.safe_dump({**recipe, "acm": {"t": 0.7, "statistics": "c"}}))
    assert run("merge", "r.yaml", "out")[0] == 0
    assert "## Lambda by module" in (folder / "out" / "README.md").read_text()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_a_merge_measures_once_what_its_recipe_says(run, folder, monkeypatch, method):
    recipe = {"merge_method": method, "base_model": "base", "models": [{"model": "math"}], "acm": {"t": 0.7}}
    (folder / "r.yaml").write_text(yaml.safe_dump({**recipe, "calibration": {"texts": "t.jsonl"}}))
    assert run("check", "r.yaml")[0] == 0
    status, out, _ = run("merge", "r.yaml", "out")
    assert status == 0
    assert "3 samples of" in out
    [kept] = (folder / "cache" / "consensus").iterdir()
    monkeypatch.setattr("merging.consensus.measure", None)
    (folder / "r.yaml").write_text(
        yaml.safe_dump({**recipe, "acm": {"control": "uniform"}, "calibration": {"texts": "t.jsonl"}})
    )
    assert run("merge", "r.yaml", "uniform")[0] == 0
    # by hand: the plain merge, what it has in common with the base, and the merge with that
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("merging.engine.postflight", lambda folder: None)
    (folder / "plain.yaml").write_text(yaml.safe_dump({key: recipe[key] for key in recipe if key != "acm"}))
    assert run("merge", "plain.yaml", "plain")[0] == 0
    measured = "math" if method == "task_arithmetic" else "plain"
    assert run("consensus", "base", measured, "c", "--texts", "t.jsonl")[0] == 0
    found, again = Consensus.load(folder / "c").information, Consensus.load(kept).information
    assert all(torch.equal(found[name], again[name]) for name in again)
    (folder / "r.yaml").write_text(yaml.safe_dump({**recipe, "acm": {"t": 0.7, "statistics": "c"}}))
    assert run("merge", "r.yaml", "by-hand")[0] == 0
    made = [(folder / name / "model.safetensors").read_bytes() for name in ("out", "by-hand", "uniform")]
    assert made[0] == made[1] != made[2]


def test_token_blocks_are_samples_of_one_length(run, folder):
    save_tensors(folder / "b", {"input_ids": torch.arange(3, 35).view(4, 8)})
    status, out, _ = run("consensus", "base", "math", "c", "--token-blocks", "b", "--longest", 5)
    assert status == 0
    assert Consensus.load(folder / "c").lengths == [5] * 4
    assert "note: acm: all 4 samples have 5 tokens" in out


def test_statistics_of_other_models_are_refused(run, refused, folder, edit_weights):
    assert run("consensus", "base", "math", "c", "--texts", "t.jsonl")[0] == 0
    edit_weights(folder / "math", lambda weights: weights["model.norm.weight"].mul_(2))
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "math"}]}
    (folder / "r.yaml").write_text(yaml.safe_dump({**recipe, "acm": {"statistics": "c"}}))
    assert "acm: the statistics for math are of another model of that name" in refused("merge", "r.yaml", "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["base", "math", "c", "--texts", "none"], "none: cannot be read"),
        (["base", "none", "c", "--texts", "t.jsonl"], "none: no such folder"),
        (["base", "math", "math", "--texts", "t.jsonl"], "math: is a folder"),
        (["base", "math", "c"], "name one of `texts`"),
    ],
)
def test_what_is_refused(refused, folder, arguments, expected):
    before = sorted(folder.iterdir())
    assert expected in refused("consensus", *arguments)
    assert sorted(folder.iterdir()) == before
