"""Safetensors in and out: strict reading of headers and indices, lazy tensors, streamed writing.

A file is never trusted: every offset, size and path is checked before a byte of weights is read.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from merging.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library itself
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: its file, dtype, shape, and the bytes [start, end) of the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Refused(ValueError):
    """Why a header or an index cannot be trusted; becomes one line of an InputError."""


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """A safetensors file's entries by name and its metadata. Raises InputError, one line naming the file."""
    try:
        return parse_header(path)
    except Refused as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def parse_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        lead = file.read(8)
        length = struct.unpack("<Q", lead)[0] if len(lead) == 8 else None
        if length is None:
            raise Refused(f"truncated: {size} bytes, too short for a safetensors header; fetch the file again")
        if length > LONGEST_HEADER:
            raise Refused(f"not a safetensors file: it claims a header of {length} bytes")
        if 8 + length > size:
            raise Refused(f"truncated: {size} bytes, the header alone takes {8 + length}; fetch the file again")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise Refused(f"not a safetensors file: bad header ({error})") from None
    if not isinstance(header, dict):
        raise Refused("not a safetensors file: its header is not an object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise Refused("bad header: __metadata__ is not an object")
    entries = {name: parse_entry(path, name, value, 8 + length) for name, value in header.items()}
    position = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != position:
            raise Refused(f"bad header: tensor {entry.name} starts at byte {entry.start}, expected {position}")
        position = entry.end
    if position != size:
        what = "truncated" if position > size else "too long"
        raise Refused(f"{what}: {size} bytes, its header describes {position}; fetch the file again")
    return entries, metadata


def without_duplicates(pairs: Iterable[tuple[str, object]]) -> dict:
    found = {}
    for key, value in pairs:
        if key in found:
            raise Refused(f"bad header: {key!r} is there twice")
        found[key] = value
    return found


def parse_entry(path: Path, name: str, value, origin: int) -> Entry:
    """One entry of a header, its numbers checked against each other."""

    def naturals(numbers) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise Refused(f"bad header: tensor {name} does not have dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not naturals(shape) or not naturals(offsets) or len(offsets) != 2:
        raise Refused(f"bad header: tensor {name} has a bad shape or bad data_offsets")
    if code not in DTYPES:
        raise Refused(f"tensor {name} has dtype {code}, which cannot be merged; use an unquantised checkpoint")
    expected = math.prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != expected:
        raise Refused(f"bad header: tensor {name} takes {offsets[1] - offsets[0]} bytes, its shape asks for {expected}")
    return Entry(name, path, DTYPES[code], tuple(shape), origin + offsets[0], origin + offsets[1])


class Checkpoint:
    """A model folder's weights, lazily: `entries` by name; `read` maps a tensor from its file without copying it."""

    def __init__(self, folder: str | Path):
        """Reads and checks the headers. Raises InputError with every problem at once."""
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._tensors: dict[str, torch.Tensor] = {}
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
        """A tensor in its stored dtype and shape, backed by the file's pages: do not write to it."""
        if name not in self._tensors:
            self._tensors[name] = self._map(self.entries[name])
        return self._tensors[name]

    def _map(self, entry: Entry) -> torch.Tensor:
        if entry.numel == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        if entry.file not in self._maps:
            with open(entry.file, "rb") as file:
                # ACCESS_COPY: torch wants a writable buffer; pages are private and never written
                self._maps[entry.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        buffer = memoryview(self._maps[entry.file])[entry.start : entry.end]
        if entry.start % entry.dtype.itemsize:
            buffer = bytearray(buffer)  # a header of odd length leaves tensors unaligned
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
    """The file an index names, refused where it could lie outside the model's folder."""
    pure = PurePosixPath(name)
    path = folder / name
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or pure.suffix != ".safetensors":
        raise InputError(f"{folder / INDEX}: shard {name!r} is not a safetensors file inside the folder")
    if path.exists() and not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / INDEX}: shard {name!r} is a link that leaves the folder; copy the file itself")
    if not path.exists():
        raise InputError(f"{folder / INDEX}: shard {name!r} is missing; fetch it again")
    return path


def disagreements(path: Path, found: Mapping[str, Entry], weight_map: Mapping[str, str]) -> list[str]:
    """Where an index and a shard do not say the same."""
    listed = {tensor for tensor, shard in weight_map.items() if shard == path.name}
    missing, extra = sorted(listed - set(found)), sorted(set(found) - listed)
    return [f"{path}: tensor {name} is in the index but not in the file" for name in missing[:3]] + [
        f"{path}: tensor {name} is in the file but not where the index has it" for name in extra[:3]
    ]


class Writer:
    """A safetensors file written header first, then in pieces, in any order and from any thread.

    `tensors` gives each tensor's dtype and shape. Same tensors, same bytes.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata=None):
        # widest dtype first, as the library has it, so that every tensor is aligned
        names = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))
        header = {"__metadata__": dict(sorted((metadata or {"format": "pt"}).items()))}
        position = 0
        for name in names:
            dtype, shape = tensors[name]
            end = position + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._offsets = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in names}
        self.tensors, self.missing = dict(tensors), position
        self._lock = threading.Lock()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - closed by close(), or on leaving the context
        self._file.write(struct.pack("<Q", len(text)) + text)
        self._file.truncate(8 + len(text) + position)

    def write(self, name: str, tensor: torch.Tensor, start: int = 0) -> None:
        """Put a piece of a tensor in its place: the elements from the `start`-th on, of the tensor's dtype."""
        if tensor.dtype != self.tensors[name][0]:
            raise ValueError(f"{name}: expected {self.tensors[name][0]}, got {tensor.dtype}")
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        position, done = self._offsets[name] + start * tensor.dtype.itemsize, 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], position + done)
        with self._lock:
            self.missing -= len(data)

    def close(self) -> None:
        self._file.close()
        if self.missing:
            raise ValueError(f"{self.missing} bytes were never written")

    def abandon(self) -> None:
        """Close a file that will not be finished."""
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        self.close() if kind is None else self.abandon()


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to one safetensors file; the same tensors and metadata give the same bytes."""
    described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    with Writer(path, described, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of one safetensors file, and its metadata. Raises InputError naming the file."""
    entries, metadata = read_header(path)
    data = path.read_bytes()
    tensors = {}
    for name, entry in entries.items():
        raw = bytearray(data[entry.start : entry.end])
        empty = torch.empty(entry.shape, dtype=entry.dtype)
        tensors[name] = torch.frombuffer(raw, dtype=entry.dtype).view(entry.shape) if raw else empty
    return tensors, metadata
