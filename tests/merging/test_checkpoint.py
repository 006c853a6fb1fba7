"""Reading hostile and broken checkpoints, and writing whole ones."""

import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from merging.checkpoint import Checkpoint
from merging.digest import model_files
from merging.errors import InputError
from merging.tensor_file import load_tensors, save_tensors
from tests.merging.memory import growth


def raw(path, header, data=b"", length=None):
    """Write a file with this header, said to be `length` long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tensor(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


HOSTILE = {
    "empty header": (b"", b"", 0, "bad header"),
    "header beyond the file": ({"w": tensor()}, b"", 10_000, "truncated"),
    "a header of 2 GB": ({"w": tensor()}, b"", 2 << 30, "header of"),
    "not JSON": (b"nonsense", b"", None, "bad header"),
    "deep nesting": (b"[" * 100_000, b"", None, "header"),
    "not an object": (b"[1]", b"", None, "not an object"),
    "data missing": ({"w": tensor()}, b"1234", None, "truncated"),
    "data left over": ({"w": tensor()}, b"123456789", None, "too long"),
    "hole": ({"w": tensor(8, 16)}, bytes(16), None, "starts at"),
    "overlap": ({"v": tensor(0, 8), "w": tensor(4, 12)}, bytes(12), None, "starts at"),
    "offsets that do not fit the shape": ({"w": tensor(0, 8, (3,))}, bytes(8), None, "asks for 12"),
    "negative offset": ({"w": tensor(-8, 0)}, bytes(8), None, "bad shape"),
    "huge shape": ({"w": tensor(0, 8, (1 << 62, 1 << 62))}, bytes(8), None, "asks for"),
    "huge shape of nothing": ({"w": tensor(0, 0, (0, 1 << 62, 1 << 62))}, b"", None, "cannot hold"),
    "more dimensions than torch has": ({"w": tensor(0, 8, (2, *[1] * 64))}, bytes(8), None, "cannot hold"),
    "a name that is no text": ({"w\ud800": tensor()}, bytes(8), None, r"'w.ud800' has a character"),
    "a name of two lines": ({"w\nv": tensor()}, bytes(8), None, "has a character"),
    "fractional shape": ({"w": tensor(0, 8, (2.0,))}, bytes(8), None, "bad shape"),
    "unknown dtype": ({"w": tensor(dtype="F8_E4M3")}, bytes(8), None, "F8_E4M3"),
    "duplicate names": (b'{"w":' + json.dumps(tensor()).encode() + b',"w":{}}', bytes(8), None, "twice"),
    "bad metadata": ({"__metadata__": [1], "w": tensor()}, bytes(8), None, "__metadata__"),
    "missing key": ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), None, "data_offsets"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path, kind):
    header, data, length, expected = HOSTILE[kind]
    raw(tmp_path / "model.safetensors", header, data, length)
    with pytest.raises(InputError, match=expected) as caught:
        Checkpoint(tmp_path)
    (problem,) = caught.value.problems
    assert "model.safetensors" in problem
    assert "\n" not in problem


def test_a_file_cut_within_its_first_bytes_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match="truncated: 2 bytes"):
        Checkpoint(tmp_path)


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "shard",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "shard.bin",
        "..\\x.safetensors",
        "\0.safetensors",
        "\ud800.safetensors",
    ],
)
def test_an_index_may_only_name_shards_inside_the_folder(tmp_path, shard):
    (tmp_path / "m").mkdir()
    save_tensors(tmp_path / "outside.safetensors", {"w": torch.ones(2)})
    write_index(tmp_path / "m", {"w": shard})
    with pytest.raises(InputError, match="not a safetensors file inside the folder"):
        Checkpoint(tmp_path / "m")


@pytest.mark.parametrize("shard", ["consolidated.safetensors", ".hidden.safetensors", "sub/model.safetensors"])
def test_an_index_may_only_name_shards_that_the_models_digest_counts(tmp_path, shard):
    (tmp_path / "sub").mkdir()
    save_tensors(tmp_path / shard, {"w": torch.ones(2)})
    write_index(tmp_path, {"w": shard})
    assert shard not in model_files(tmp_path)
    with pytest.raises(InputError, match="does not count as one of the model's files; call it"):
        Checkpoint(tmp_path)


def test_a_shards_name_may_not_be_longer_than_a_disk_allows(tmp_path):
    write_index(tmp_path, {"w": "a" * 300 + ".safetensors"})
    with pytest.raises(InputError, match=r"index.json: shard 'a+' cannot be read: File name too long"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["shard.safetensors", "model.safetensors"])
def test_weights_may_not_be_a_link_that_leaves_the_folder(tmp_path, name):
    (tmp_path / "m").mkdir()
    save_tensors(tmp_path / "outside.safetensors", {"w": torch.ones(2)})
    os.symlink(tmp_path / "outside.safetensors", tmp_path / "m" / name)
    if name != "model.safetensors":
        write_index(tmp_path / "m", {"w": name})
    with pytest.raises(InputError, match=f"{name}: is a link that leaves the folder"):
        Checkpoint(tmp_path / "m")


def test_index_and_shards_must_agree(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"v": torch.ones(2), "w": torch.ones(2)})
    write_index(tmp_path, {"v": "a.safetensors", "x": "a.safetensors", "y": "b.safetensors"})
    with pytest.raises(InputError) as caught:
        Checkpoint(tmp_path)
    text = str(caught.value)
    assert "tensor x is in the index but not in the file" in text
    assert "tensor w is in the file but not where" in text
    assert "'b.safetensors' is missing" in text


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"w": 1}}', "nonsense"])
def test_a_malformed_index_is_refused(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="not a safetensors index"):
        Checkpoint(tmp_path)


def test_pickles_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match=r"pickles \(pytorch_model.bin\)"):
        Checkpoint(tmp_path)


def test_leftovers_of_another_layout_are_refused(tmp_path):
    save_tensors(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    write_index(tmp_path, {"w": "model.safetensors"})
    with pytest.raises(InputError, match="left over"):
        Checkpoint(tmp_path)


def test_sharded_weights_read_as_they_were_saved(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"v": torch.arange(6.0).view(2, 3)})
    save_tensors(tmp_path / "b.safetensors", {"w": torch.ones(2, dtype=torch.bfloat16)})
    write_index(tmp_path, {"v": "a.safetensors", "w": "b.safetensors"})
    checkpoint = Checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("v"), torch.arange(6.0).view(2, 3))
    assert torch.equal(checkpoint.read("w"), torch.ones(2, dtype=torch.bfloat16))


def test_unaligned_scalar_and_empty_tensors_read(tmp_path):
    header = {"a": tensor(0, 1, (1,), "U8"), "b": tensor(1, 5, ()), "c": tensor(5, 5, (0, 3))}
    raw(tmp_path / "model.safetensors", header, b"\x07" + struct.pack("<f", 1.5))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.read("b").item() == 1.5
    assert checkpoint.read("c").shape == (0, 3)


def test_rows_of_an_unaligned_tensor_are_all_that_is_copied(tmp_path):
    table = torch.randn(4096, 1024)  # 16 MiB
    header = {"a": tensor(0, 1, (1,), "U8"), "w": tensor(1, 1 + table.nbytes, table.shape)}
    raw(tmp_path / "model.safetensors", header, b"\x07" + table.numpy().tobytes())
    checkpoint = Checkpoint(tmp_path)
    with growth() as added:
        pieces = [checkpoint.rows("w", first, first + 64) for first in range(0, 4096, 1024)]
    assert all(torch.equal(piece, table[i * 1024 :][:64]) for i, piece in enumerate(pieces))
    assert added[0] < table.nbytes / 4


def test_rows_of_a_tensor_are_its_own_pages(tmp_path):
    tensors = {"w": torch.arange(12.0).view(4, 3), "scalar": torch.tensor(2.0), "empty": torch.empty(0, 3)}
    save_tensors(tmp_path / "model.safetensors", tensors)
    checkpoint = Checkpoint(tmp_path)
    found = checkpoint.rows("w", 1, 3)
    assert torch.equal(found, tensors["w"][1:3])
    assert found.data_ptr() == checkpoint.read("w")[1:].data_ptr()
    assert torch.equal(checkpoint.rows("w", 3, 9), tensors["w"][3:])
    assert checkpoint.rows("scalar", 0, 1).item() == 2
    assert checkpoint.rows("empty", 0, 0).shape == (0, 3)


def test_what_is_written_the_library_reads_back(tmp_path):
    tensors = {
        "b": torch.randn(3, 5).to(torch.bfloat16),
        "a": torch.randn(4, 2).T,
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "ids": torch.tensor([1, 2, 3]),
        "flag": torch.tensor([True, False]),
    }
    save_tensors(tmp_path / "ours.safetensors", tensors, {"z": "1", "a": "2"})
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"a": "2", "z": "1"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())
    save_file({"w": torch.ones(2)}, tmp_path / "theirs.safetensors")
    assert torch.equal(load_tensors(tmp_path / "theirs.safetensors")[0]["w"], torch.ones(2))


def test_same_tensors_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    save_tensors(tmp_path / "1", tensors, {"x": "1", "y": "2"})
    save_tensors(tmp_path / "2", dict(reversed(tensors.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
