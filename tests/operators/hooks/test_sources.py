import json
import os
import shutil
from pathlib import Path

import pytest

from merging.digest import model_digest, model_files
from merging.errors import InputError
from operators.hooks.hub import Hub
from operators.hooks.sources import Address, ResolvedModel, Sources, parse


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path / "cache")


@pytest.mark.parametrize(
    ("source", "kind", "place", "revision"),
    [
        ("org/name", "hub", "org/name", None),
        ("org/name@v1.0", "hub", "org/name", "v1.0"),
        ("org/name@refs/pr/1", "hub", "org/name", "refs/pr/1"),
        ("/models/a", "local", "/models/a", None),
        ("./a", "local", "/studies/a", None),
        ("../a/b", "local", "/a/b", None),
        ("~/a", "local", "/home/someone/a", None),
        ("s3://bucket/models/a/", "s3", "s3://bucket/models/a", None),
        ("s3://bucket", "s3", "s3://bucket", None),
    ],
)
def test_names_of_models(tmp_path, monkeypatch, source, kind, place, revision):
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse(source, Path("/studies")) == Address(kind=kind, place=place, revision=revision)


@pytest.mark.parametrize("source", ["name", "a/b/c", "org/name@", "org/na me", "@v1", "", "s3:///x", "http://x/y"])
def test_other_names_are_refused(tmp_path, source):
    with pytest.raises(InputError, match="names no model|an S3 address is"):
        parse(source, tmp_path)


def test_hub_and_local_copies_have_one_digest(hub_server, make_model, write_folder, tmp_path):
    files = make_model()
    hub_server.commit("org/model", files | {"README.md": b"# A card", ".gitattributes": b"x"})
    sources = Sources(tmp_path / "cache", hub=Hub(hub_server.url))
    folder = write_folder("local", files | {"notes.txt": b"x"})
    from_hub, from_disk = sources.resolve("org/model", tmp_path), sources.resolve("./local", tmp_path)
    assert from_hub.digest == from_disk.digest == model_digest(model_files(folder))
    assert from_hub.files == from_disk.files == model_files(folder)


def test_a_resolved_model_survives_json(sources, make_model, write_folder, tmp_path):
    write_folder("local", make_model() | {"README.md": b"---\nlicense: mit\n---\n# A card\n"})
    resolved = sources.resolve("./local", tmp_path)
    assert ResolvedModel.model_validate_json(resolved.model_dump_json()) == resolved
    assert (resolved.source, resolved.kind, resolved.commit, resolved.licence) == ("./local", "local", None, "mit")


def test_a_resolved_model_cannot_lead_outside(sources, make_model, write_folder, tmp_path):
    write_folder("local", make_model())
    record = json.loads(sources.resolve("./local", tmp_path).model_dump_json())
    record["files"]["/etc/passwd"] = {"sha256": "0", "size": 1}
    with pytest.raises(InputError, match="leads outside"):
        ResolvedModel.model_validate(record)


def test_fetch_copies_a_local_model(sources, make_model, write_folder, tmp_path):
    folder = write_folder("local", make_model() | {"pytorch_model.bin": b"x"})
    resolved = sources.resolve("./local", tmp_path)
    assert sources.preview(resolved, tmp_path / "preview") == folder
    sources.fetch(resolved, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(b"changed afterwards")
    assert model_files(tmp_path / "copy") == resolved.files
    assert not (tmp_path / "copy" / "pytorch_model.bin").exists()


def test_fetch_mends_a_damaged_copy(sources, make_model, write_folder, tmp_path):
    write_folder("local", make_model())
    resolved = sources.resolve("./local", tmp_path)
    write_folder("copy", {"model.safetensors": b"damaged", "config.json": b""})
    sources.fetch(resolved, tmp_path / "copy")
    assert model_files(tmp_path / "copy") == resolved.files


def test_a_local_model_that_changed_is_refused(sources, make_model, write_folder, tmp_path):
    write_folder("local", make_model(1))
    resolved = sources.resolve("./local", tmp_path)
    write_folder("local", make_model(2))
    with pytest.raises(InputError, match="model.safetensors holds other bytes than it had when resolved"):
        sources.fetch(resolved, tmp_path / "copy")


def test_a_remembered_digest_is_dropped_when_the_file_changes(sources, make_model, write_folder, tmp_path):
    folder = write_folder("local", make_model(1))
    first = sources.resolve("./local", tmp_path).digest
    assert sources.resolve("./local", tmp_path).digest == first
    write_folder("local", make_model(2))
    stat = (folder / "model.safetensors").stat()
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert sources.resolve("./local", tmp_path).digest == model_digest(model_files(folder)) != first


def test_links_out_of_a_folder_are_refused(sources, make_model, write_folder, tmp_path):
    folder = write_folder("local", make_model())
    write_folder("elsewhere", {"secret": b"x"})
    (folder / "tokenizer.model").symlink_to(tmp_path / "elsewhere" / "secret")
    with pytest.raises(InputError, match="tokenizer.model: is a link that leaves the folder"):
        sources.resolve("./local", tmp_path)


def test_a_snapshot_in_the_hub_cache_is_a_local_model(sources, make_model, write_folder, tmp_path):
    files = make_model()
    write_folder("models--org--model/blobs", files)
    snapshot = tmp_path / "models--org--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    resolved = sources.resolve(str(snapshot), tmp_path)
    sources.fetch(resolved, tmp_path / "copy")
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == files
    assert not any(path.is_symlink() for path in (tmp_path / "copy").iterdir())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such folder: check the path"),
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, "only pickle weights"),
        ({"config.json": b"{}"}, "no safetensors weights there"),
        ({"adapter_model.safetensors": b"x"}, "no config.json there: an adapter must be merged"),
    ],
)
def test_folders_that_hold_no_checkpoint(sources, write_folder, tmp_path, files, message):
    write_folder("local", files)
    with pytest.raises(InputError, match=message):
        sources.resolve("./local", tmp_path)


def test_a_full_disk_is_noticed_before_it_is_full(sources, make_model, write_folder, tmp_path, monkeypatch):
    write_folder("local", make_model())
    resolved = sources.resolve("./local", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(InputError, match="bytes are to come but 1 are free: make room"):
        sources.fetch(resolved, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []
