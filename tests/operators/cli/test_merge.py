"""`mergeflow merge` and `mergeflow methods`: a mistake is one line, status 2, and nothing is written."""

import pytest
import torch
import yaml

from merging.checkpoint import Checkpoint
from merging.methods import METHODS


@pytest.fixture
def folder(models, monkeypatch):
    """The current folder: copies of models and a recipe of them."""
    monkeypatch.chdir(models)
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "math"}]}
    (models / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return models


def test_a_weight_that_is_not_a_number_stops_the_merge(refused, folder, edit_weights):
    name = "model.layers.1.self_attn.q_proj.weight"

    def poison(weights):
        weights[name][0, 0] = torch.nan

    edit_weights(folder / "math", poison)
    before = sorted(folder.iterdir())
    line = refused("merge", "recipe.yaml", "out")
    assert name in line
    assert "math" in line
    assert sorted(folder.iterdir()) == before


def test_weights_are_cut_into_files_of_a_size(run, folder):
    for name in ("base", "math"):
        (folder / name / "README.md").write_text(f"---\nlicense: {name}s-own\n---\n")
    status, out, _ = run("merge", "recipe.yaml", "out", "--shard-size", "1.5MB", "--device", "auto")
    assert status == 0
    assert out.startswith("out: 57 tensors, 2.5 MB in ")
    assert "note: the inputs' licences differ: base: bases-own, math: maths-own" in out
    files = {entry.file for entry in Checkpoint(folder / "out").entries.values()}
    assert [file.stat().st_size < 1_510_000 for file in files] == [True, True]
    assert "mergeflow merge recipe.yaml OUT --shard-size 1500000" in (folder / "out" / "README.md").read_text()


@pytest.mark.parametrize("size", ["0", "5 foo", "-1", "GB"])
def test_a_size_that_is_none_is_refused_with_what_would_be(refused, folder, size):
    line = refused("merge", "recipe.yaml", "out", f"--shard-size={size}")
    assert line == f"mergeflow: --shard-size: expected bytes or a size like 5GB, 500MB or 2GiB, found {size!r}"
    assert not list(folder.glob("out*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(refused, folder):
    assert "device cuda: torch cannot use it here" in refused("merge", "recipe.yaml", "out", "--device", "cuda")
    assert not list(folder.glob("out*"))


def test_the_methods_are_listed_with_their_parameters(run):
    status, out, _ = run("methods")
    assert status == 0
    assert all(name[:16] in out for name in METHODS)
    assert "density" in out


def test_the_current_folder_is_no_place_for_a_merge(refused, folder):
    before = sorted(folder.iterdir())
    assert "is the current folder, which a merge cannot replace" in refused("merge", "recipe.yaml", ".")
    assert sorted(folder.iterdir()) == before
