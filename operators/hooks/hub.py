"""The Hugging Face hub: which commit a name stands for, what that commit holds, and its bytes."""

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import tenacity
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from merging.digest import file_sha256
from merging.errors import InputError, TransientError
from operators.hooks.transfer import append_to

COMMIT = re.compile("[0-9a-f]{40}")
OTHER_LENGTH = "{} sent a file of another length than it listed"
TOKEN_HINT = "set a token that may read it as the password of the connection huggingface_default, or as HF_TOKEN"


class Hub:
    """One hub endpoint. Requests that fail in passing are tried `attempts` times, from `wait` seconds apart.

    `endpoint` None is huggingface.co; `token` None is the one huggingface_hub finds (HF_TOKEN, `hf auth login`).
    """

    def __init__(self, endpoint: str | None = None, token: str | None = None, *, attempts: int = 4, wait: float = 1.0):
        self.api = HfApi(endpoint=endpoint, token=token, library_name="mergeflow")
        self.retry = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_exponential(multiplier=wait, max=10),
            retry=tenacity.retry_if_exception_type(TransientError),
            reraise=True,
        )

    def model(self, repo: str, revision: str | None, cache: Path) -> "HubModel":
        """The model `repo` ("org/name") at the commit its `revision` (branch, tag, commit; None: main) has now.

        Raises InputError for an unknown or forbidden repository or revision, TransientError for a hub that fails.
        """
        name = f"{repo}@{revision}" if revision else repo

        def ask():
            with hub_errors(name, self.api.endpoint):
                return self.api.model_info(repo, revision=revision, files_metadata=True, timeout=30)

        return HubModel(self, repo, self.retry(ask), cache)

    def dataset_commit(self, name: str, revision: str | None) -> str:
        """The commit that a data set's `revision` (None: main) has now. Errors as `model`."""

        def ask():
            with hub_errors(name, self.api.endpoint):
                return self.api.dataset_info(name, revision=revision, timeout=30)

        return self.retry(ask).sha

    def pinned(self, repo: str, commit: str, cache: Path) -> "HubModel":
        """The model `repo` at a commit known already; asks the hub nothing yet."""
        return HubModel(self, repo, commit, cache)


class HubModel:
    """The files of one repository at one commit. Small files are kept in `cache`, weights never."""

    kind = "hub"

    def __init__(self, hub: Hub, repo: str, info, cache: Path):
        self.hub, self.repo = hub, repo
        self.info = None if isinstance(info, str) else info
        self.commit = info if isinstance(info, str) else info.sha
        if not COMMIT.fullmatch(self.commit or ""):
            raise InputError(f"{repo}: {hub.api.endpoint} gave {self.commit!r} where a commit belongs")
        self.name = f"{repo}@{self.commit[:12]}"
        self.cache = cache / "hub" / repo.replace("/", "--") / self.commit

    def sizes(self) -> dict[str, int]:
        """Every file of the commit with its size in bytes."""
        return {file.rfilename: file.size or 0 for file in self.info.siblings}

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """SHA-256 of each file: LFS files have it in the listing, the others (small) are downloaded into the cache."""
        listed = {file.rfilename: file for file in self.info.siblings}
        return {name: listed[name].lfs.sha256 if listed[name].lfs else self._cached(listed[name]) for name in names}

    def licence(self) -> str | None:
        """The licence the model card's metadata names."""
        licence = self.info.card_data.get("license") if self.info.card_data else None
        return ", ".join(licence) if isinstance(licence, list) else licence

    def read(self, name: str, start: int, count: int) -> bytes:
        """Bytes start .. start + count of a file, by an HTTP range request unless the cache has it."""
        cached = self.cache / name
        if cached.is_file():
            return cached.read_bytes()[start : start + count]

        def ask() -> bytes:
            headers = self._headers() | {"Range": f"bytes={start}-{start + count - 1}", "Accept-Encoding": "identity"}
            with (
                hub_errors(f"{self.name}: {name}", self.hub.api.endpoint),
                http_stream_backoff("GET", self._url(name), headers=headers, timeout=30, max_retries=0) as response,
            ):
                hf_raise_for_status(response)
                # A server that ignores ranges answers 200 with the file from its start.
                wanted = start + count if response.status_code == 200 else count
                found = b""
                for chunk in response.iter_bytes():
                    found += chunk
                    if len(found) >= wanted:
                        break
                return found[wanted - count : wanted]

        return self.hub.retry(ask)

    def copy(self, name: str, size: int, partial: Path, moved: Callable[[int], None]) -> None:
        """Complete `partial` to the whole file, going on after the bytes it has; `moved` hears how many it has."""
        cached = self.cache / name
        if cached.is_file():
            shutil.copyfile(cached, partial)
            return

        def ask() -> None:
            with hub_errors(f"{self.name}: {name}", self.hub.api.endpoint), append_to(partial, size) as file:
                # huggingface_hub's own download keeps nothing of a broken file; http_get goes on where `partial` ends.
                http_get(
                    self._url(name),
                    file,
                    resume_size=file.tell(),
                    headers=self._headers(),
                    expected_size=size,
                    displayed_filename=name,
                    tqdm_class=_progress_to(moved),
                )

        self.hub.retry(ask)

    def _cached(self, file) -> str:
        target = self.cache / file.rfilename
        if not target.is_file():
            content = self.read(file.rfilename, 0, file.size) if file.size else b""
            if _git_blob(content) != file.blob_id:
                raise TransientError(f"{self.name}: {file.rfilename} arrived damaged (its git checksum is wrong)")
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            part.write_bytes(content)
            part.replace(target)
        return file_sha256(target)

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repo, name, revision=self.commit, endpoint=self.hub.api.endpoint)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self.hub.api.token, library_name="mergeflow")


def from_connection(conn_id: str = "huggingface_default") -> Hub:
    """The hub an Airflow connection names: host (huggingface.co if there is none), password = token."""
    from operators.hooks.connections import address

    url, token = address(conn_id, required=False)
    return Hub(url, token)


@contextmanager
def hub_errors(what: str, endpoint: str) -> Iterator[None]:
    """Turn the hub's errors into one line each: InputError where a person must act, TransientError otherwise."""
    try:
        yield
    except GatedRepoError as error:
        raise InputError(f"{what}: gated on {endpoint}: accept its terms there and {TOKEN_HINT}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{what}: no such revision on {endpoint}: name a branch, tag or commit it has") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"{what}: no such model on {endpoint}, or it is private: check the spelling (a local folder is written "
            f"./org/name); if it is private, {TOKEN_HINT}"
        ) from error
    except EntryNotFoundError as error:
        raise InputError(f"{what}: no such file on {endpoint} any more") from error
    except HFValidationError as error:
        raise InputError(f"{what}: not a hub id (org/name or org/name@revision)") from error
    except OfflineModeIsEnabled as error:
        raise InputError(f"{what}: HF_HUB_OFFLINE is set: unset it, or use a local folder") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise InputError(f"{what}: {endpoint} refuses access (HTTP {status}): {TOKEN_HINT}") from error
        if status in (408, 429) or status >= 500:
            raise TransientError(f"{what}: {endpoint} answered HTTP {status}: try again later") from error
        if status == 416:  # nothing lies behind the bytes that came, though the listing says so
            raise TransientError(f"{what}: {OTHER_LENGTH.format(endpoint)}") from error
        raise InputError(f"{what}: {endpoint} answered HTTP {status}") from error
    except HTTPError as error:
        raise TransientError(f"{what}: the connection to {endpoint} failed ({type(error).__name__})") from error
    except OSError as error:
        if error.errno:  # this machine's disk
            raise
        raise TransientError(f"{what}: {OTHER_LENGTH.format(endpoint)}") from error


def _git_blob(content: bytes) -> str:
    """The id git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _progress_to(moved: Callable[[int], None]) -> type:
    """The least of tqdm's interface that http_get uses: it counts, and tells `moved` the sum."""

    class Progress:
        def __init__(self, *, initial: int = 0, **_):
            self.position = initial

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count: int) -> None:
            self.position += count
            moved(self.position)

    return Progress
