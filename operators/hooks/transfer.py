"""A model's files on their way into a folder: confined to it, resumed after a break, verified by digest."""

import fcntl
import os
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from merging.digest import file_sha256
from merging.errors import InputError, MergeflowError, TransientError

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, what is going on

HEADER_LIMIT = 100 * 2**20  # bytes; the safetensors library refuses longer headers
FIRST_READ = 100_000  # bytes; nearly every header fits, so that one request does


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`; InputError for a name that leads out of it."""
    pure = PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise InputError(f"{name!r}: a file name that leads outside the model's folder: do not trust this source")
    return folder / pure


def fetch_file(model, name: str, file: dict, target: Path, moved: Callable[[int], None]) -> None:
    """Bring one file of `model` to `target` with the sha256 and size `file` gives; `moved` hears how many bytes came.

    Bytes that arrive damaged are fetched again. The same wrong bytes twice are no accident: InputError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_file() and not target.is_symlink() and file_sha256(target) == file["sha256"]:
        return moved(file["size"])
    partial = target.with_name(f".{target.name}.{file['sha256'][:16]}.part")
    wrong = set()
    for _ in range(3):  # the first may go on from damaged bytes
        with disk_errors(target):
            model.copy(name, file["size"], partial, moved)
        found = file_sha256(partial)
        if found == file["sha256"]:
            partial.replace(target)
            return moved(file["size"])
        partial.unlink()
        if found in wrong:
            raise InputError(
                f"{model.name}: {name} holds other bytes than it had when resolved (sha256 {found[:12]}, expected "
                f"{file['sha256'][:12]}): it was changed; start the study again to take it as it is now"
            )
        wrong.add(found)
    raise TransientError(f"{model.name}: {name} arrived damaged {len(wrong)} times: check the connection")


def append_to(partial: Path, size: int) -> BinaryIO:
    """Open `partial` at its end; one longer than the `size` bytes to come is begun anew."""
    file = partial.open("ab")
    if file.tell() > size:
        file.truncate(0)
        file.seek(0)
    return file


def preview_file(model, name: str, file: dict, target: Path) -> None:
    """Write a small file whole; of a safetensors file only its header, with a hole as long as its data."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        target.write_bytes(_header(model, name, file["size"]))
        os.truncate(target, file["size"])
        return
    target.write_bytes(model.read(name, 0, file["size"]))
    if file_sha256(target) != file["sha256"]:
        raise TransientError(f"{model.name}: {name} came with other bytes than it had when resolved")


def _header(model, name: str, size: int) -> bytes:
    """The length word and the header of a safetensors file; a damaged one as it is, for preflight to judge."""
    start = model.read(name, 0, min(size, FIRST_READ))
    if len(start) < 8:
        return start
    end = 8 + struct.unpack("<Q", start[:8])[0]
    if end > min(size, HEADER_LIMIT):
        return start
    if end > len(start):
        start += model.read(name, len(start), end - len(start))
    return start[:end]


def refuse_full_disk(folder: Path, size: int) -> None:
    """InputError if `size` bytes (less what `folder` holds already) do not fit on its disk."""
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if size - held > free:
        raise InputError(f"{folder}: {size - held:,} bytes are to come but {free:,} are free: make room on this disk")


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Report what this machine's disk refuses in one line."""
    try:
        yield
    except OSError as error:
        raise MergeflowError(f"cannot copy to {target}: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this caller alone; another process that fetches into it waits, then finds all there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Report:
    """Sums the bytes of files that arrive in parallel and passes them to a progress function."""

    def __init__(self, source: str, size: int, progress: Progress | None):
        self.source, self.size, self.progress = source, size, progress
        self.arrived: dict[str, int] = {}
        self.lock = threading.Lock()

    def of(self, name: str) -> Callable[[int], None]:
        """The function to tell how many bytes of the file `name` have arrived."""

        def moved(count: int) -> None:
            with self.lock:
                self.arrived[name] = count
                if self.progress:
                    self.progress(sum(self.arrived.values()), self.size, f"fetch {self.source}: {name}")

        return moved
