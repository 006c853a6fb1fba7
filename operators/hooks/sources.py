"""Where a study's models come from: hub ids, local folders and S3 prefixes, resolved to the same digests and files."""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from merging.digest import is_model_file, model_digest
from merging.errors import InputError
from operators.hooks.transfer import Progress, Report, fetch_file, inside, locked, preview_file, refuse_full_disk

Kind = Literal["hub", "local", "s3"]
HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w.-]+)(@(?P<revision>[^@\s]+))?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Address(BaseModel):
    """A model's name in a study, taken apart. `place`: hub id without revision, absolute path, or s3:// address."""

    kind: Kind
    place: str
    revision: str | None = None


class ResolvedModel(BaseModel):
    """What a name stands for: its content by digest, and where to get it. JSON-serialisable, holds no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(description="the name as the study has it")
    kind: Kind
    place: str = Field(description="hub id without revision, absolute path, or s3:// address")
    commit: str | None = Field(default=None, description="the hub commit the name stood for")
    digest: str = Field(description="merging.digest.model_digest of the files")
    files: dict[str, dict[str, Any]] = Field(description='{relative name: {"sha256": hex, "size": bytes}}')
    licence: str | None = None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict) -> dict:
        for name in files:
            inside(Path("/"), name)
        return files

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file["size"] for file in self.files.values())


def parse(source: str, folder: Path) -> Address:
    """Take a model's name apart; relative paths count from `folder` (the study file's). InputError if it is none."""
    if source.startswith("s3://"):
        if not source.removeprefix("s3://").partition("/")[0]:
            raise InputError(f"{source!r}: an S3 address is s3://bucket/prefix")
        return Address(kind="s3", place=source.rstrip("/"))
    if source in (".", "..") or source.startswith(("/", "./", "../", "~")):
        return Address(kind="local", place=os.path.abspath(folder / os.path.expanduser(source)))
    found = HUB_ID.fullmatch(source)
    if not found:
        raise InputError(
            f"{source!r} names no model: write a hub id (org/name or org/name@revision), a path that starts with "
            "/, ./, ../ or ~, or s3://bucket/prefix"
        )
    return Address(kind="hub", place=found["repo"], revision=found["revision"])


class Sources:
    """Resolves, previews and fetches models. `cache` holds small files and remembered digests, never weights.

    `hub` is an `operators.hooks.hub.Hub` and `s3` a boto3 client; each may be None where no model needs it.
    """

    def __init__(self, cache: Path, hub=None, s3=None):
        self.cache, self.hub, self.s3 = cache, hub, s3

    def resolve(self, source: str, folder: Path) -> ResolvedModel:
        """Pin what `source` stands for now, by digest, without moving weights (except to hash S3 objects of others).

        Raises InputError for a name, model or revision that is not there, is forbidden or has no safetensors weights.
        """
        address = parse(source, folder)
        model = self._open(address.kind, address.place, address.revision)
        sizes = model.sizes()
        for name in sizes:
            inside(Path("/"), name)
        names = [name for name in sorted(sizes) if is_model_file(name)]
        refuse_unusable(source, names, sizes)
        digests = model.digests(names)
        files = {name: {"sha256": digests[name], "size": sizes[name]} for name in names}
        return ResolvedModel(
            source=source,
            kind=address.kind,
            place=address.place,
            commit=model.commit,
            digest=model_digest(files),
            files=files,
            licence=model.licence(),
        )

    def preview(self, resolved: ResolvedModel, folder: Path) -> Path:
        """A folder that preflight can judge: configs and tokenizer whole, of the weights only the headers.

        A safetensors file there is sparse: real header, full length, no data. A local model is its own preview.
        """
        if resolved.kind == "local":
            return Path(resolved.place)
        model = self._reopen(resolved)
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in resolved.files.items():
            preview_file(model, name, file, inside(folder, name))
        return folder

    def fetch(self, resolved: ResolvedModel, folder: Path, progress: Progress | None = None) -> None:
        """Make `folder` a verified copy of the model. What an earlier, broken call left there is gone on from.

        Raises InputError if the source holds other bytes by now, TransientError if they kept arriving damaged.
        """
        model = self._reopen(resolved)
        folder.mkdir(parents=True, exist_ok=True)
        refuse_full_disk(folder, resolved.size)
        report = Report(resolved.source, resolved.size, progress)

        def one(name: str) -> None:
            fetch_file(model, name, resolved.files[name], inside(folder, name), report.of(name))

        with locked(folder), ThreadPoolExecutor(max_workers=4) as pool:
            list(pool.map(one, resolved.files))

    def _reopen(self, resolved: ResolvedModel):
        return self._open(resolved.kind, resolved.place, resolved.commit, pinned=True)

    def _open(self, kind: str, place: str, revision: str | None, *, pinned: bool = False):
        from operators.hooks.folders import LocalModel, S3Model

        if kind == "local":
            return LocalModel(Path(place), self.cache)
        if kind == "s3":
            return S3Model(place, self.s3, self.cache)
        return (self.hub.pinned if pinned else self.hub.model)(place, revision, self.cache)


def refuse_unusable(source: str, names: Iterable[str], all_names: Iterable[str]) -> None:
    """InputError if what is there (`all_names`; `names`: its model files) is no safetensors checkpoint."""
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in all_names if name.endswith(PICKLES))
        if pickles:
            raise InputError(
                f"{source}: only pickle weights ({', '.join(pickles[:3])}), which can run code when read: name a "
                "revision with safetensors (on the hub often refs/pr/N), or convert them with save_pretrained"
            )
        raise InputError(f"{source}: no safetensors weights there (*.safetensors at the top of the folder)")
    if "config.json" not in names:
        raise InputError(f"{source}: no config.json there: an adapter must be merged into its base model first")
