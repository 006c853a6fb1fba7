"""The bucket: content-addressed folders, each complete once its `manifest.json` is there (written last).

Layout: `models/<digest>/`, `calibrations/<digest>/`, `scores/<digest>/`, `texts/<digest>.jsonl` and, not
content-addressed, `studies/<name>/<run>/`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
)
from s3transfer.exceptions import RetriesExceededError

from merging.digest import file_sha256
from merging.errors import InputError, MergeflowError, TransientError

log = logging.getLogger(__name__)

Kind = Literal["models", "calibrations", "scores"]
MANIFEST = "manifest.json"
SMALL = 64 * 2**20  # bytes
REFUSED = {
    "AccessDenied",
    "AllAccessDisabled",
    "InvalidAccessKeyId",
    "InvalidSecurity",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "403",
}
WRONG_ADDRESS = {
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidBucketName",
    "PermanentRedirect",
}
ABSENT = {"NoSuchKey", "NoSuchBucket", "404"}


def cache_folder() -> Path:
    """Where this worker keeps what it downloaded: $MERGEFLOW_CACHE, or a folder in the user's cache."""
    return Path(os.environ.get("MERGEFLOW_CACHE") or Path.home() / ".cache" / "mergeflow")


class ObjectStore:
    """One bucket of an S3 service, seen through a boto3 client.

    Errors: refused credentials and missing buckets are InputError; a service that does not answer is TransientError.
    """

    def __init__(self, client: Any, bucket: str, cache: Path | None = None):
        self.client = client
        self.bucket = bucket
        self.cache = cache or cache_folder()

    def uri(self, *parts: str) -> str:
        return f"s3://{self.bucket}/{'/'.join(parts)}"

    def key(self, uri: str) -> str:
        """The key of an address in this bucket."""
        return uri.removeprefix(self.uri(""))

    def manifest(self, kind: Kind, digest: str) -> dict[str, Any] | None:
        """The manifest of a complete folder, or None while there is none."""
        return self.read_json(f"{kind}/{digest}/{MANIFEST}")

    def publish(
        self, kind: Kind, digest: str, folder: Path, about: Mapping[str, Any], *, force: bool = False
    ) -> dict[str, Any]:
        """Upload every file of `folder`, then the manifest: {"digest", "files": {name: {sha256, size}}, **about}.

        Returns the manifest that stands: another writer's if it was first, ours otherwise (`force` replaces theirs).
        Of small files the first copy stands, so that writers whose bytes differ (a model card, say) cannot mix; the
        digest fixes the bytes of large ones.
        """
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
            if path.name.startswith("."):
                continue
            name = path.relative_to(folder).as_posix()
            key = f"{kind}/{digest}/{name}"
            if path.stat().st_size > SMALL or force:
                self.upload(key, path)
            elif not self.write_bytes(key, path.read_bytes(), only_if_absent=True):
                path.write_bytes(self.read_bytes(key))
            files[name] = {"sha256": file_sha256(path), "size": path.stat().st_size}
        manifest = {"digest": digest, "files": files, **about}
        if self.write_json(f"{kind}/{digest}/{MANIFEST}", manifest, only_if_absent=not force):
            return manifest
        log.info("%s/%s was finished by another task meanwhile; its result stands", kind, digest)
        return self.manifest(kind, digest) or manifest

    def local(self, kind: Kind, digest: str) -> Path:
        """A complete, verified copy of a folder in this worker's cache, downloaded if it is not there yet."""
        manifest = self.manifest(kind, digest)
        if manifest is None:
            raise TransientError(f"{self.uri(kind, digest)} is not complete: it has no {MANIFEST}")
        folder = self.cache / kind / digest
        if _is_copy(folder, manifest):
            return folder
        with self.scratch() as part:
            for name, file in manifest["files"].items():
                self.download(f"{kind}/{digest}/{name}", _inside(part, name), file["sha256"])
            return self.keep(kind, digest, part, manifest)

    def keep(self, kind: Kind, digest: str, folder: Path, manifest: Mapping[str, Any]) -> Path:
        """Move a whole `folder` (made in `scratch`) into the cache under its digest."""
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
        kept = self.cache / kind / digest
        kept.parent.mkdir(parents=True, exist_ok=True)
        if _is_copy(kept, manifest):
            return kept
        if kept.exists():  # what `force` replaced, or the leavings of a killed task
            shutil.rmtree(kept)
        try:
            folder.rename(kept)
        except OSError:  # another task was faster
            if not _is_copy(kept, manifest):
                raise
        return kept

    @contextmanager
    def scratch(self):
        """A private folder beside the cache, gone afterwards unless it was kept."""
        folder = self.cache / "scratch" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def download(self, key: str, path: Path, sha256: str) -> Path:
        """Write the object at `key` to `path`, which must then have the digest `sha256`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.errors(f"read {key}"), path.open("wb") as content:
                self.client.download_fileobj(self.bucket, key, content)
        except FileNotFoundError:
            raise TransientError(f"{self.uri(key)} is missing, though something refers to it") from None
        if file_sha256(path) != sha256:
            raise TransientError(f"{self.uri(key)} came with other bytes than were written")
        return path

    def upload(self, key: str, path: Path) -> None:
        """Write a local file to `key`."""
        with self.errors(f"write {key}"), path.open("rb") as content:
            self.client.upload_fileobj(content, self.bucket, key)

    def read_bytes(self, key: str) -> bytes:
        """The object at `key`; FileNotFoundError if there is none."""
        with self.errors(f"read {key}"):
            return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def read_json(self, key: str) -> dict[str, Any] | None:
        """The JSON object at `key`, or None if there is none."""
        try:
            return json.loads(self.read_bytes(key))
        except FileNotFoundError:
            return None
        except ValueError:
            raise InputError(f"{self.uri(key)} is damaged: it is not JSON; remove it and run again") from None

    def write_json(self, key: str, value: Mapping[str, Any], *, only_if_absent: bool = False) -> bool:
        """Write a JSON object; False if `only_if_absent` and something was there."""
        return self.write_bytes(key, json.dumps(value, indent=1).encode(), only_if_absent=only_if_absent)

    def write_bytes(self, key: str, body: bytes, *, only_if_absent: bool = False) -> bool:
        """Write an object; False if `only_if_absent` and something was there."""
        condition = {"IfNoneMatch": "*"} if only_if_absent else {}
        try:
            with self.errors(f"write {key}"):
                self.client.put_object(Bucket=self.bucket, Key=key, Body=body, **condition)
        except FileExistsError:
            return False
        return True

    @contextmanager
    def errors(self, what: str):
        """Type what goes wrong within: see the class; FileNotFoundError and FileExistsError for keys."""
        try:
            yield
        except ClientError as error:
            raise _typed(error, f"cannot {what} in bucket {self.bucket}") from None
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise InputError(f"cannot {what} in bucket {self.bucket}: {error}; give AWS credentials") from None
        except ParamValidationError as error:
            raise InputError(f"cannot {what} in bucket {self.bucket!r}: {' '.join(str(error).split())}") from None
        except (BotoCoreError, RetriesExceededError, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise MergeflowError(f"cannot {what}: {error}") from None
            raise TransientError(
                f"the object store did not answer: cannot {what} in bucket {self.bucket}: {error}"
            ) from None


def _typed(error: ClientError, what: str) -> Exception:
    """botocore's one error class, told apart by its code; messages carry no credential."""
    code = error.response["Error"]["Code"]
    if code in ("PreconditionFailed", "ConditionalRequestConflict"):
        return FileExistsError(what)
    if code == "NoSuchBucket":
        return InputError(f"{what}: there is no such bucket; create it or correct the connection aws_default")
    if code in ABSENT:
        return FileNotFoundError(what)
    if code in REFUSED:
        return InputError(
            f"{what}: the object store refused the credentials ({code}); check the connection aws_default"
        )
    if code in WRONG_ADDRESS:
        return InputError(f"{what}: {code}; check bucket, region and endpoint in the connection aws_default")
    return TransientError(f"{what}: {code}")


def _is_copy(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether a cached folder holds what the manifest says; its own manifest was written when it did."""
    try:
        return json.loads((folder / MANIFEST).read_text())["files"] == manifest["files"]
    except (OSError, ValueError, KeyError):
        return False


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{name!r} in a manifest leads outside its folder; the object store was tampered with")
    return path


def from_connection(conn_id: str = "aws_default") -> ObjectStore:
    """The bucket an Airflow connection of type aws names in its extra, as `service_config.s3.bucket_name`."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook

    hook = S3Hook(aws_conn_id=conn_id)
    bucket = hook.service_config.get("bucket_name")
    if not bucket:
        raise InputError(
            f"the Airflow connection {conn_id} names no bucket: add to its extra "
            '{"service_config": {"s3": {"bucket_name": "YOUR-BUCKET"}}}'
        )
    try:
        return ObjectStore(hook.conn, bucket)
    except ValueError as error:  # an endpoint that is no URL
        raise InputError(f"the Airflow connection {conn_id}: {error}") from None
