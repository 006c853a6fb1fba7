"""A model's files in a local folder or under an S3 prefix, read the way `hub.HubModel` reads a repository's."""

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from merging.digest import file_sha256, json_digest
from merging.errors import InputError
from merging.links import stays_inside
from merging.yaml_file import NOT_YAML
from operators.hooks.object_store import MANIFEST, ObjectStore
from operators.hooks.transfer import append_to

CHUNK = 8 * 2**20


class LocalModel:
    """The files of a folder on this machine. `cache` remembers digests by size and time of change."""

    kind, commit = "local", None

    def __init__(self, folder: Path, cache: Path):
        self.name, self.folder, self.cache = str(folder), folder, cache
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder: check the path (paths count from the study file's folder)")

    def sizes(self) -> dict[str, int]:
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return {name: path.stat().st_size for name, path in found.items()}

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        return {name: self._sha256(self._path(name)) for name in names}

    def licence(self) -> str | None:
        card = self.folder / "README.md"
        return card_licence(card.read_text(errors="replace")) if card.is_file() else None

    def read(self, name: str, start: int, count: int) -> bytes:
        with self._path(name).open("rb") as file:
            file.seek(start)
            return file.read(count)

    def copy(self, name: str, size: int, partial: Path, moved: Callable[[int], None]) -> None:
        def chunks(start: int) -> Iterator[bytes]:
            with self._path(name).open("rb") as source:
                source.seek(start)
                yield from iter(lambda: source.read(CHUNK), b"")

        complete(partial, size, chunks, moved)

    def _path(self, name: str) -> Path:
        path = self.folder / name
        if not stays_inside(self.folder, path):
            raise InputError(f"{path}: is a link that leaves the folder; put the file itself there")
        return path

    def _sha256(self, path: Path) -> str:
        stat = path.stat()
        key = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        return remembered(self.cache, key, lambda: file_sha256(path))


class S3Model:
    """The objects under an S3 prefix. Digests come from our own manifest where there is one, else from the bytes."""

    kind, commit = "s3", None

    def __init__(self, uri: str, client, cache: Path):
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.name, self.cache = uri, cache
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self.store = ObjectStore(client, bucket, cache)
        self.objects: dict[str, dict] = {}

    def sizes(self) -> dict[str, int]:
        with self.store.errors(f"list {self.name}"):
            pages = self.store.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.store.bucket, Prefix=self.prefix
            )
            found = [entry for page in pages for entry in page.get("Contents", [])]
        self.objects = {entry["Key"].removeprefix(self.prefix): entry for entry in found}
        if not self.objects:
            raise InputError(f"{self.name}: nothing is there: check the bucket and the prefix")
        return {name: entry["Size"] for name, entry in self.objects.items()}

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        listed = self._manifest()
        return {name: listed[name] if name in listed else self._sha256(name) for name in names}

    def licence(self) -> str | None:
        if "README.md" not in self.objects:
            return None
        return card_licence(self.read("README.md", 0, self.objects["README.md"]["Size"]).decode(errors="replace"))

    def read(self, name: str, start: int, count: int) -> bytes:
        if count == 0:
            return b""
        with self.errors(name):
            found = self._get(name, Range=f"bytes={start}-{start + count - 1}")
            return found["Body"].read()

    def copy(self, name: str, size: int, partial: Path, moved: Callable[[int], None]) -> None:
        with self.errors(name):
            complete(partial, size, lambda start: self._chunks(name, start), moved)

    def _manifest(self) -> dict[str, str]:
        """The digests our own manifest lists for files that are there with the size it says."""
        if MANIFEST not in self.objects:
            return {}
        try:
            files = json.loads(self.read(MANIFEST, 0, self.objects[MANIFEST]["Size"]))["files"]
            return {
                name: file["sha256"]
                for name, file in files.items()
                if name in self.objects and file["size"] == self.objects[name]["Size"]
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}  # somebody else's manifest.json

    def _sha256(self, name: str) -> str:
        entry = self.objects[name]

        def stream() -> str:
            with self.errors(name):
                digest = hashlib.sha256()
                for chunk in self._chunks(name, 0) if entry["Size"] else ():
                    digest.update(chunk)
                return digest.hexdigest()

        key = [self.name, name, entry["ETag"], entry["Size"], entry["LastModified"].isoformat()]
        return remembered(self.cache, key, stream)

    def _chunks(self, name: str, start: int) -> Iterator[bytes]:
        yield from self._get(name, Range=f"bytes={start}-")["Body"].iter_chunks(CHUNK)

    def _get(self, name: str, **options) -> dict:
        return self.store.client.get_object(Bucket=self.store.bucket, Key=self.prefix + name, **options)

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """The store's typed errors; a key that is gone is the user's to correct."""
        try:
            with self.store.errors(f"read {self.prefix}{name}"):
                yield
        except FileNotFoundError:
            raise InputError(f"{self.name}: {name} is not there any more") from None


def complete(partial: Path, size: int, chunks: Callable[[int], Iterator[bytes]], moved: Callable[[int], None]) -> None:
    """Append to `partial` what `chunks(start)` gives from its end on, up to `size` bytes; `moved` hears how many."""
    with append_to(partial, size) as file:
        if file.tell() == size:
            return
        for chunk in chunks(file.tell()):
            file.write(chunk)
            moved(file.tell())


def remembered(cache: Path, key: list, compute: Callable[[], str]) -> str:
    """A digest kept in `cache` under what identifies its file, so that a plan does not read every model again."""
    kept = cache / "sha256" / json_digest(key)
    if not kept.is_file():
        digest = compute()
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
        part.write_text(digest)
        part.replace(kept)
    return kept.read_text()


def card_licence(card: str) -> str | None:
    """The licence in the YAML block that opens a model card (README.md)."""
    if not card.startswith("---\n"):
        return None
    try:
        block = yaml.safe_load(card.split("---\n", 2)[1])
        licence = block.get("license")
    except NOT_YAML:
        return None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence
