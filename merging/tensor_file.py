"""One safetensors file: its header read strictly, its tensors written header first.

A file is never trusted: every offset, size and name is checked before a byte of weights is read.
"""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.errors import InputError

LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library itself
MOST_DIMENSIONS = 64  # torch's limit
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
    except Refused:
        raise
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

    if not name.isprintable():
        raise Refused(f"bad header: tensor {name!r} has a character in its name that cannot be shown")
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
    # a 0 among the sizes hides what the others come to
    if len(shape) > MOST_DIMENSIONS or math.prod(max(1, n) for n in shape) * DTYPES[code].itemsize >= 1 << 63:
        raise Refused(f"bad header: tensor {name} has a bad shape, which torch cannot hold")
    return Entry(name, path, DTYPES[code], tuple(shape), origin + offsets[0], origin + offsets[1])


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
