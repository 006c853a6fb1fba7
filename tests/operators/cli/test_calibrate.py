"""`mergeflow calibrate`, and merges that calibrate their base: three sources, each mistake one line."""

import json

import pytest
import torch
import yaml

from merging.tensor_file import load_tensors, save_tensors


@pytest.fixture
def folder(models, monkeypatch):
    """The current folder: copies of models, texts, token blocks, a data set and a recipe with AIM."""
    monkeypatch.chdir(models)
    rows = [json.dumps({"text": f"Compute {number}+1\n{number + 1}"}) + "\n" for number in range(20)]
    (models / "texts.jsonl").write_text("".join(rows))
    (models / "set").mkdir()
    (models / "set" / "validation.jsonl").write_text("".join(rows))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", models / "datasets")
    save_tensors(models / "blocks.safetensors", {"input_ids": torch.arange(3, 51).view(3, 16)})
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "math"}]}
    (models / "plain.yaml").write_text(yaml.safe_dump({**recipe, "aim": {"omega": 0.4}}))
    choice = {"texts": "texts.jsonl", "samples": 20, "block": 16}
    (models / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "aim": {"omega": 0.4}, "calibration": choice}))
    return models


def test_texts_tell_when_they_ran_out(run, folder):
    status, out, _ = run("calibrate", "base", "s.safetensors", "--texts", "texts.jsonl", "--block", 16)
    assert status == 0
    assert out.splitlines()[0].startswith("s.safetensors: ")
    assert "note: the texts ended after 20 that can be used, of 256 wanted" in out
    vectors, about = load_tensors(folder / "s.safetensors")
    assert all(vector.dtype == torch.float32 for vector in vectors.values())
    assert about["samples"] == "20"
    assert {"model", "calibration", "tokens", "lengths", "dtype", "blocks"} <= set(about)


def test_token_blocks_and_both_ways(run, folder):
    given = ["--token-blocks", "blocks.safetensors", "--device", "cpu"]
    assert run("calibrate", "base", "s.safetensors", *given)[0] == 0
    assert run("calibrate", "base", "w.safetensors", *given, "--whole")[0] == 0
    assert run("calibrate", "base", "b.safetensors", *given, "--dtype", "bfloat16")[0] == 0
    (streamed, about), (whole, other), (half, rounded) = (
        load_tensors(folder / f"{name}.safetensors") for name in ("s", "w", "b")
    )
    assert about == other
    assert (about["blocks"], about["tokens"]) == ("3", "48")
    for module, vector in streamed.items():
        torch.testing.assert_close(vector, whole[module], rtol=1e-5, atol=1e-5 * vector.max().item())
        assert ((half[module] - vector).abs() <= 0.05 * vector.max()).all()
    assert rounded["dtype"] == "bfloat16"
    assert rounded["calibration"] != about["calibration"]


def test_a_data_set_in_a_folder(run, folder):
    assert run("calibrate", "base", "s.safetensors", "--dataset", "set", "--samples", 20, "--block", 16)[0] == 0
    assert load_tensors(folder / "s.safetensors")[1]["samples"] == "20"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "name one of `texts` (a JSONL file), `dataset` (a hub id) and `token_blocks` (a safetensors file), found"),
        (["--texts", "texts.jsonl", "--dataset", "set"], "found texts, dataset"),
        (["--token-blocks", "blocks.safetensors", "--block", 16], "token_blocks are taken as they are"),
        (["--token-blocks", "texts.jsonl"], "texts.jsonl: "),
        (["--texts", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["--texts", "texts.jsonl"], "less than one block of 512"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(refused, folder, given, says):
    before = sorted(path.name for path in folder.iterdir() if path.name not in ("datasets", "cache"))
    assert says in refused("calibrate", "base", "s.safetensors", *given)
    assert sorted(path.name for path in folder.iterdir() if path.name not in ("datasets", "cache")) == before


def test_a_merge_calibrates_its_base_once(run, folder, monkeypatch):
    options = ["--texts", "texts.jsonl", "--samples", 20, "--block", 16]
    assert run("calibrate", "base", "s.safetensors", *options)[0] == 0
    named = yaml.safe_load((folder / "plain.yaml").read_text())
    named["aim"]["statistics"] = "s.safetensors"
    (folder / "named.yaml").write_text(yaml.safe_dump(named))
    assert run("merge", "named.yaml", "named")[0] == 0
    status, out, _ = run("merge", "recipe.yaml", "made")
    assert status == 0
    (kept,) = (folder / "cache" / "statistics").iterdir()
    assert f"{kept}: " in out
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("named", "made")]
    assert weights[0] == weights[1]
    monkeypatch.setattr("merging.calibration.calibrate", None)
    assert run("merge", "recipe.yaml", "again")[0] == 0
    assert (folder / "again" / "model.safetensors").read_bytes() == weights[0]


def test_a_recipe_is_checked_before_its_base_is_calibrated(run, refused, folder):
    status, out, _ = run("check", "recipe.yaml")
    assert (status, "no mistakes found" in out) == (0, True)
    assert not (folder / "cache" / "statistics").exists()
    assert "calibration" in refused("check", "plain.yaml")
    (folder / "texts.jsonl").write_text("{")
    assert "texts.jsonl:1: not valid JSON" in refused("check", "recipe.yaml")
    (folder / "math" / "config.json").unlink()
    assert "config.json" in refused("merge", "recipe.yaml", "out")
    assert not (folder / "out").exists()
