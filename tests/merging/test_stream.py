"""One reading for several merges, in blocks, by any number of threads; and output that goes on after a kill."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch

from merging.checkpoint import Checkpoint
from merging.digest import model_files
from merging.engine import merge, merge_many
from merging.errors import InputError
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.stream import row_blocks
from merging.tensor_file import load_tensors, save_tensors


def recipe(method="ties", **keys):
    entries = [{"model": "one"}, {"model": "two"}]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": entries, **keys})


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def statistics(family, tmp_path):
    tensors, _ = load_tensors(family["base"] / "model.safetensors")
    vectors = {name.removesuffix(".weight"): torch.rand(t.shape[-1]) for name, t in tensors.items()}
    save_tensors(tmp_path / "statistics.safetensors", vectors)
    return tmp_path / "statistics.safetensors"


def test_blocks_are_whole_rows_and_cover_a_tensor():
    assert row_blocks((5, 4), 12) == [(0, 3), (3, 5)]
    assert row_blocks((2, 50), 12) == [(0, 1), (1, 2)]
    assert row_blocks((100,), 12) == [(0, 100)]
    assert row_blocks((), 12) == [(0, 1)]
    assert row_blocks((0, 4), 12) == [(0, 0)]
    assert row_blocks((4, 2, 3), 12) == [(0, 2), (2, 4)]


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("method", METHODS)
def test_small_blocks_make_what_whole_tensors_make(family, tmp_path, monkeypatch, method):
    known = METHODS[method].parameters
    names = ["one", "two"][: METHODS[method].experts[1]]
    data = {"merge_method": method, "base_model": "base", "models": [{"model": name} for name in names]}
    data["parameters"] = {"density": 0.4} if "density" in known else {}
    merge(Recipe.parse(data), tmp_path / "whole", models=family)
    monkeypatch.setattr("merging.stream.BLOCK", 24)
    monkeypatch.setattr("merging.methods.selection.SAMPLE", 16)
    merge(Recipe.parse(data), tmp_path / "blocks", models=family)
    whole, blocks = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "blocks"))
    for name in whole:
        torch.testing.assert_close(blocks[name], whole[name], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("without_postflight")
def test_many_recipes_in_one_reading_equal_one_by_one(family, tmp_path, statistics):
    recipes = {
        "ties": recipe("ties", parameters={"density": 0.5}),
        "aim 0.2": recipe("ties", parameters={"density": 0.5}, aim={"omega": 0.2}),
        "aim 0.6": recipe("ties", parameters={"density": 0.5}, aim={"omega": 0.6}, out_dtype="bfloat16"),
        "model": recipe("ties", parameters={"density": 0.5, "trim": "model"}),
        "dare": recipe("dare_linear", parameters={"density": 0.5}),
        "pair": recipe("linear", models=[{"model": "one"}]),
        "double": recipe("widen", dtype="float64"),
    }
    outs = {name: tmp_path / "many" / name for name in recipes}
    found = merge_many(
        list(recipes.values()),
        list(outs.values()),
        models=family,
        statistics=statistics,
        metadata=[{"candidate": name} for name in recipes],
    )
    for result, (name, one) in zip(found, recipes.items(), strict=True):
        alone = merge(one, tmp_path / "one" / name, models=family, statistics=statistics if one.aim else None)
        assert weights(outs[name]) == weights(tmp_path / "one" / name), name
        assert f"| candidate | {name} |" in (outs[name] / "README.md").read_text()
        assert result["delta_norms"].keys() >= alone["delta_norms"].keys()


@pytest.mark.usefixtures("without_postflight")
def test_problems_of_all_recipes_are_told_and_nothing_is_left(family, tmp_path):
    with pytest.raises(InputError) as caught:
        merge_many([recipe(aim={}), recipe(tokenizer_source="union")], [tmp_path / "a", tmp_path / "b"], models=family)
    assert len(caught.value.problems) == 2
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("shard_size", [1, 600, 10_000])
def test_shards_hold_the_same_weights(family, tmp_path, shard_size):
    merge(recipe(), tmp_path / "single", models=family)
    found = merge(recipe(), tmp_path / "shards", models=family, shard_size=shard_size)
    whole, _ = load_tensors(tmp_path / "single" / "model.safetensors")
    sharded = Checkpoint(tmp_path / "shards")
    assert set(sharded.entries) == set(whole)
    assert all(torch.equal(sharded.read(name), tensor) for name, tensor in whole.items())
    sizes = {}
    for entry in sharded.entries.values():
        sizes.setdefault(entry.file, []).append(entry.end - entry.start)
    assert all(sum(parts) <= shard_size or len(parts) == 1 for parts in sizes.values())
    if len(sizes) > 1:
        index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(sum(parts) for parts in sizes.values())
    assert found["files"] == model_files(tmp_path / "shards")


KILLED = """
import os, signal, sys
from pathlib import Path
from merging import engine
from merging.recipe import Recipe
engine.postflight = lambda folder: None
recipe, out, base, one, two, after = sys.argv[1:]
def progress(done, total, name):
    if done == int(after):
        os.kill(os.getpid(), signal.SIGKILL)
engine.merge(Recipe.load(recipe), Path(out), models={"base": base, "one": one, "two": two}, shard_size=600,
             progress=progress)
"""


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize(("after", "least"), [(1, 0), (6, 2), (12, 7)])
def test_a_killed_merge_goes_on_from_its_finished_shards(family, tmp_path, after, least):
    wanted = recipe("ties", parameters={"density": 0.5})
    merge(wanted, tmp_path / "straight", models=family, shard_size=600)
    (tmp_path / "recipe.yaml").write_text(wanted.to_yaml())
    arguments = [tmp_path / "recipe.yaml", tmp_path / "out", *(family[n] for n in ("base", "one", "two")), after]
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *map(str, arguments)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "out.partial").glob("*.safetensors")}
    assert len(finished) >= least
    made = []
    found = merge(wanted, tmp_path / "out", models=family, shard_size=600, progress=lambda d, t, n: made.append(n))
    assert len(made) <= 12 - len(finished)
    assert found["files"] == model_files(tmp_path / "straight")
    assert found["delta_norms"].keys() == {"lm_head", "model.embed_tokens", "model.layers.0", "model.norm"}
    assert not list(tmp_path.glob("out.partial*"))
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.safetensors")}
    assert all(kept[p.name] == time for p, time in finished.items())


@pytest.mark.usefixtures("without_postflight")
def test_another_merges_leavings_are_not_mixed_in(family, tmp_path, monkeypatch):
    def stop(done, total, name):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe("linear"), tmp_path / "out", models=family, shard_size=600, progress=stop)
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    merge(recipe("ties"), tmp_path / "out", models=family, shard_size=600)
    merge(recipe("ties"), tmp_path / "straight", models=family, shard_size=600)
    assert model_files(tmp_path / "out") == model_files(tmp_path / "straight")


@pytest.mark.usefixtures("without_postflight")
def test_a_folder_of_someone_elses_is_not_touched(family, tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="was not left by a merge"):
        merge(recipe(), tmp_path / "out", models=family)
    assert (tmp_path / "out.partial" / "notes.txt").read_text() == "mine"


def test_two_merges_do_not_write_one_folder(tmp_path):
    from merging.output import OutputFolder

    first = OutputFolder(tmp_path / "out", "key", {}, None)
    with pytest.raises(InputError, match="another merge is writing"):
        OutputFolder(tmp_path / "out", "key", {}, None)
    os.close(first._lock)


def test_one_merge_of_several_that_overflows_leaves_nothing_and_is_named(oracle, tmp_path):
    case = oracle("llama_f32")
    recipes = [case.recipe("linear"), case.recipe("task_arithmetic", parameters={"lambda": 1e39})]
    models = {name: case.model(name) for recipe in recipes for name in recipe.inputs}
    with pytest.raises(InputError, match="NaN or Inf"):
        merge_many(recipes, [tmp_path / "good", tmp_path / "bad"], models=models)
    assert [path.name for path in tmp_path.iterdir() if path.name != "good"] == []
