"""The folder a merge is made in: shards, what a kill leaves and a rerun takes over, and who may write it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from merging.checkpoint import Checkpoint
from merging.digest import model_files
from merging.engine import merge
from merging.errors import InputError, TransientError
from merging.output import OutputFolder, lock
from merging.recipe import Recipe
from merging.tensor_file import load_tensors


def recipe(method="ties", **keys):
    entries = [{"model": "one"}, {"model": "two"}]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": entries, **keys})


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


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("note", ["null", "[]", '{"key": 1}', "[" * 100_000])
def test_a_note_that_no_merge_wrote_is_no_licence_to_remove(family, tmp_path, note):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial.json").write_text(note)
    merge(recipe(), tmp_path / "out", models=family)
    (tmp_path / "next.partial").mkdir()
    (tmp_path / "next.partial" / "notes.txt").write_text("mine")
    (tmp_path / "next.partial.json").write_text(note)
    with pytest.raises(InputError, match="was not left by a merge"):
        merge(recipe(), tmp_path / "next", models=family)
    assert (tmp_path / "next.partial" / "notes.txt").read_text() == "mine"


def test_a_link_where_the_output_is_built_is_not_followed(family, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "out.partial").symlink_to("mine")
    (tmp_path / "out.partial.json").write_text('{"key": "another", "sums": {}}')
    with pytest.raises(InputError, match="out.partial: is a link, and in the way"):
        merge(recipe(), tmp_path / "out", models=family)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.usefixtures("without_postflight")
def test_links_among_what_a_merge_left_are_removed_not_followed(family, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "out.partial.json").write_text('{"key": "another", "sums": {}}')
    merge(recipe(), tmp_path / "out", models=family)
    assert (tmp_path / "mine" / "notes.txt").exists()
    assert not (tmp_path / "out" / "link").exists()


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("there", [True, False])
def test_a_link_as_output_leads_to_the_folder_that_is_made(family, tmp_path, there):
    if there:
        (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    merge(recipe(), tmp_path / "out", models=family)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.partial*"))


def test_a_mount_point_is_refused_before_a_byte_is_written(family, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "out")
    with pytest.raises(InputError, match="out: is a mount point, .* name a new folder within it"):
        merge(recipe(), tmp_path / "out", models=family)
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("out", ["", ".", "../here", "/"])
def test_a_folder_that_cannot_be_replaced_is_refused(family, tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="which a merge cannot replace; name a new folder"):
        merge(recipe(), out, models=family)
    assert list((tmp_path / "here").iterdir()) == []


def test_two_merges_do_not_write_one_folder(tmp_path):
    first = OutputFolder(tmp_path / "out", "key", {}, None)
    with pytest.raises(TransientError, match="another merge is writing"):
        OutputFolder(tmp_path / "out", "key", {}, None)
    first.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_stops_before_a_shard_is_whole_leaves_nothing(family, tmp_path):
    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(recipe("linear"), tmp_path / "out", models=family, progress=stop)
    assert not list(tmp_path.glob("out*"))


def test_a_folder_that_cannot_be_made_is_the_users_to_correct(tmp_path):
    (tmp_path / "out.partial").write_text("a file")
    with pytest.raises(InputError, match="out.partial: this folder cannot be made: File exists"):
        OutputFolder(tmp_path / "out", "key", {}, None)


def hold(folder, held, seconds):
    descriptor = lock(folder)
    held.set()
    time.sleep(seconds)
    folder.rename(folder.with_name("renamed"))
    os.close(descriptor)


def test_who_waits_for_a_folder_gets_the_one_of_that_name(tmp_path):
    process = multiprocessing.get_context("spawn")
    held = process.Event()
    holder = process.Process(target=hold, args=(tmp_path / "folder", held, 0.5))
    holder.start()
    assert held.wait(60)
    descriptor = lock(tmp_path / "folder", wait=True)
    assert (tmp_path / "renamed").is_dir()
    assert os.path.samestat(os.fstat(descriptor), (tmp_path / "folder").stat())
    os.close(descriptor)
    holder.join(60)
    assert holder.exitcode == 0
