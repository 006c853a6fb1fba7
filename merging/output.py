"""The folder a merge is made in: shards that appear when whole, a note of how far it got, the rename at the end."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from merging.checkpoint import INDEX, SINGLE
from merging.errors import InputError, TransientError
from merging.preflight import Output
from merging.tensor_file import Writer


class OutputFolder:
    """`out`, built beside as `out.partial`.

    A shard takes its name once it is whole, so what has its name is done; `out.partial.json` holds `key` (what is being
    made) and the finished shards' sums, so that a merge that was killed goes on where it stopped.
    """

    def __init__(self, out: Path, key: str, outputs: Mapping[str, Output], shard_size: int | None):
        """Raises InputError if `out` holds something or a link is in the way, TransientError if it is being written."""
        refuse_used(out)
        refuse_link(partial_of(out))
        self.out, self.outputs = out, outputs
        self.partial = partial_of(out)
        self._note = out.with_name(out.name + ".partial.json")
        self._lock: int | None = lock(self.partial)
        self._key = key
        self._writers: dict[str, Writer] = {}
        self.sums: dict[str, dict[str, float]] = {}
        try:
            refuse_used(out)  # another merge may have published it until the lock was ours
            self.sums = self._resume()
        except InputError:
            self._leave()
            raise
        self._write_note()
        self.shards = shard_names(outputs, shard_size)
        self._file_of = {name: file for file, names in self.shards.items() for name in names}
        self._left = {file: len(names) for file, names in self.shards.items() if not (self.partial / file).exists()}
        self._opening = threading.Lock()
        self._squares: dict[str, dict[str, float]] = {}

    def _resume(self) -> dict:
        """The sums of the shards an earlier merge with this key finished; what another left is removed."""
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError, RecursionError):
            note = {}
        if not isinstance(note, dict) or not isinstance(note.get("sums"), dict):
            note = {}
        if note.get("key") == self._key:
            return note["sums"]
        left = list(self.partial.iterdir())
        if left and not note:
            raise InputError(f"{self.partial}: is in the way and was not left by a merge; move it")
        for path in left:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        return {}

    def _write_note(self) -> None:
        beside = self._note.with_suffix(".new")
        beside.write_text(json.dumps({"key": self._key, "sums": self.sums}))
        os.replace(beside, self._note)

    def todo(self) -> list[str]:
        """The tensors that are not in a finished shard, in order."""
        return [name for name in self._file_of if self._file_of[name] in self._left]

    def put(self, name: str, piece: torch.Tensor, start: int) -> None:
        """Write a piece of a tensor to its shard. May be called from any thread."""
        self._writer(self._file_of[name]).write(name, piece, start)

    def _writer(self, file: str) -> Writer:
        with self._opening:
            if file not in self._writers:
                described = {n: (self.outputs[n].dtype, self.outputs[n].shape) for n in self.shards[file]}
                self._writers[file] = Writer(self.partial / (file + ".unfinished"), described)
            return self._writers[file]

    def finish(self, name: str, square: float | None) -> None:
        """A tensor is written; the shard takes its name after its last."""
        file = self._file_of[name]
        if square is not None:
            self._squares.setdefault(file, {})[name] = square
        self._left[file] -= 1
        if self._left[file] == 0:
            self._writer(file).close()
            del self._writers[file]
            self.sums[file] = self._squares.pop(file, {})
            self._write_note()
            os.rename(self.partial / (file + ".unfinished"), self.partial / file)

    def write_index(self) -> None:
        """The index, where there is more than one shard."""
        if list(self.shards) == [SINGLE]:
            return
        size = sum(math.prod(output.shape) * output.dtype.itemsize for output in self.outputs.values())
        index = {"metadata": {"total_size": size}, "weight_map": self._file_of}
        (self.partial / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")

    def squares(self) -> dict[str, float]:
        """The sums of squares by tensor, those of shards finished earlier included."""
        return {name: value for file in self.shards for name, value in self.sums.get(file, {}).items()}

    def publish(self) -> None:
        """Give the folder its name."""
        os.rename(self.partial, self.out)
        self._note.unlink(missing_ok=True)
        self._unlock()

    def discard(self) -> None:
        """Leave nothing behind."""
        if self._lock is None:
            return
        self._abandon()
        shutil.rmtree(self.partial, ignore_errors=True)
        self._note.unlink(missing_ok=True)
        self._unlock()

    def release(self) -> None:
        """Close what is open; finished shards stay for a rerun."""
        if not self.sums:
            self.discard()
        self._abandon()
        self._unlock()

    def _abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()
        self._writers = {}

    def _leave(self) -> None:
        """Go without having touched anything but a folder that was made for the lock."""
        with suppress(OSError):
            self.partial.rmdir()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def settled(out: str | Path) -> Path:
    """`out`, or the folder it leads to as a link. Raises InputError if a finished merge could not take its name."""
    path = Path(out)
    if path.is_symlink() or path.name in ("", ".."):
        path = path.resolve()
    if os.path.ismount(path):
        raise InputError(f"{out}: is a mount point, which a merge cannot replace; name a new folder within it")
    if path.is_dir() and path.samefile("."):
        raise InputError(f"{out}: is the current folder, which a merge cannot replace; name a new folder")
    return path


def refuse_link(partial: Path) -> None:
    """Raises InputError if a link stands where an output is built: what is there is no merge's to remove."""
    if partial.is_symlink():
        raise InputError(f"{partial}: is a link, and in the way of the merge; remove it")


def partial_of(out: Path) -> Path:
    """Where `out` is built."""
    return out.with_name(out.name + ".partial")


def refuse_used(out: Path) -> None:
    """Raises InputError if `out` holds something."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds something already; name a new folder or empty this one")


def lock(folder: Path, *, wait: bool = False) -> int:
    """A folder, made if it is not there and held for this process until the descriptor is closed.

    The kernel lets go of it when the process ends, however it ends. With `wait` the holder is waited for; otherwise
    TransientError. InputError where the folder cannot be made.
    """
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: this folder cannot be made: {error.strerror}") from None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if is_at(descriptor, folder):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise TransientError(f"{folder}: another merge is writing this folder; wait for it") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder renamed or removed what we waited for


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def shard_names(outputs: Mapping[str, Output], shard_size: int | None) -> dict[str, list[str]]:
    """`{file: tensors}`, tensors in the order of their names, each file at most `shard_size` bytes of weights.

    A tensor that is larger has a file of its own. None: one file.
    """
    shards: list[list[str]] = []
    room = 0
    for name in sorted(outputs):
        size = math.prod(outputs[name].shape) * outputs[name].dtype.itemsize
        if not shards or (shard_size and size > room):
            shards.append([])
            room = shard_size or 0
        shards[-1].append(name)
        room -= size
    if len(shards) <= 1:
        return {SINGLE: shards[0] if shards else []}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, start=1)}
