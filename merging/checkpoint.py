"""A model folder's weights: one safetensors file, or shards with an index; every path stays inside the folder."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from merging.digest import is_model_file
from merging.errors import InputError
from merging.links import stays_inside
from merging.tensor_file import Entry, read_header, without_duplicates

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """A model folder's weights, lazily: `entries` by name; `read` maps a tensor from its file without copying it."""

    def __init__(self, folder: str | Path):
        """Reads and checks the headers. Raises InputError with every problem at once."""
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        problems = []
        weight_map = self._weight_map()
        for name in sorted(set(weight_map.values())) if weight_map is not None else [SINGLE]:
            try:
                found, _ = read_header(inside(self.folder, name))
            except InputError as error:
                problems += error.problems
                continue
            if weight_map is not None:
                problems += disagreements(self.folder / name, found, weight_map)
            self.entries.update(found)
        if problems:
            raise InputError(problems)

    def _weight_map(self) -> dict[str, str] | None:
        """`{tensor: shard}` from the index; None for a checkpoint in one file."""
        single, index = self.folder / SINGLE, self.folder / INDEX
        if single.exists() and index.exists():
            raise InputError(f"{self.folder}: both {SINGLE} and {INDEX} are there; remove the one that is left over")
        if single.exists():
            return None
        if index.exists():
            return read_index(index)
        pickles = sorted(path.name for path in self.folder.glob("*") if path.suffix in PICKLES)
        if pickles:
            raise InputError(
                f"{self.folder}: its weights are pickles ({pickles[0]}), which can run code; convert to safetensors"
            )
        raise InputError(f"{self.folder}: no weights: neither {SINGLE} nor {INDEX}")

    def read(self, name: str) -> torch.Tensor:
        """A tensor in its stored dtype and shape, backed by the file's pages: do not write to it.

        One that lies unaligned in its file (after a header of odd length) is copied.
        """
        return self._map(self.entries[name])

    def rows(self, name: str, first: int, end: int) -> torch.Tensor:
        """The rows [first, end) of a tensor, as `read` gives them; a scalar as it is."""
        entry = self.entries[name]
        if not entry.shape:
            return self._map(entry)
        width = (entry.end - entry.start) // max(1, entry.shape[0])
        end = min(end, entry.shape[0])
        start = entry.start + first * width
        shape = (max(0, end - first), *entry.shape[1:])
        return self._map(replace(entry, shape=shape, start=start, end=start + shape[0] * width))

    def fetch_ahead(self, name: str) -> int:
        """Have the kernel read a tensor from disk while something else is done. How many bytes that is."""
        entry = self.entries[name]
        if entry.numel == 0:
            return 0
        first = entry.start // mmap.PAGESIZE * mmap.PAGESIZE
        self._file(entry.file).madvise(mmap.MADV_WILLNEED, first, entry.end - first)
        return entry.end - entry.start

    def _file(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with open(path, "rb") as file:
                # ACCESS_COPY: torch wants a writable buffer; pages are private and never written
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]

    def _map(self, entry: Entry) -> torch.Tensor:
        if entry.numel == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        buffer = memoryview(self._file(entry.file))[entry.start : entry.end]
        if entry.start % entry.dtype.itemsize:
            buffer = bytearray(buffer)
        return torch.frombuffer(buffer, dtype=entry.dtype).view(entry.shape)

    @property
    def bytes(self) -> int:
        return sum(entry.end - entry.start for entry in self.entries.values())


def read_index(path: Path) -> dict[str, str]:
    """`{tensor: shard}` of an index file. Raises InputError naming the file."""
    try:
        data = json.loads(path.read_text(), object_pairs_hook=without_duplicates)
        weight_map = data["weight_map"]
        good = all(isinstance(k, str) and isinstance(v, str) for k, v in weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors index: {error!r}") from None
    if not good or not weight_map:
        raise InputError(f"{path}: not a safetensors index: weight_map must name a file for each tensor")
    return weight_map


def inside(folder: Path, name: str) -> Path:
    """A weights file by its name in an index; refused where it could lie outside the folder, or no digest counts it."""
    pure, index = PurePosixPath(name), folder / INDEX
    path = folder / name
    unsafe = pure.is_absolute() or ".." in pure.parts or "\\" in name or not name.isprintable()
    if unsafe or pure.suffix != ".safetensors":
        raise InputError(f"{index}: shard {name!r} is not a safetensors file inside the folder")
    if not is_model_file(name):
        raise InputError(
            f"{index}: shard {name!r} does not count as one of the model's files; call it model-00001-of-00001"
            ".safetensors or the like, beside the index and in it"
        )
    try:
        if not stays_inside(folder, path):
            raise InputError(f"{path}: is a link that leaves the folder; put the file itself there")
        if not path.exists():
            raise InputError(f"{index}: shard {name!r} is missing; fetch it again")
    except OSError as error:
        raise InputError(f"{index}: shard {name[:80]!r} cannot be read: {error.strerror}; fetch it again") from None
    return path


def disagreements(path: Path, found: Mapping[str, Entry], weight_map: Mapping[str, str]) -> list[str]:
    """Where an index and a shard do not say the same."""
    listed = {tensor for tensor, shard in weight_map.items() if shard == path.name}
    missing, extra = sorted(listed - set(found)), sorted(set(found) - listed)
    return [f"{path}: tensor {name} is in the index but not in the file" for name in missing[:3]] + [
        f"{path}: tensor {name} is in the file but not where the index has it" for name in extra[:3]
    ]
