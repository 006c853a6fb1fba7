"""The secrets of a local installation, generated once and kept in a file that only its owner can read."""

import base64
import json
import os
import secrets
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from merging.errors import InputError


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(os.urandom(32)).decode()


@dataclass(frozen=True)
class Credentials:
    """S3 key pair, Airflow's login, and the keys with which Airflow's processes trust one another."""

    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    s3_secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30), repr=False)
    airflow_user: str = "admin"
    airflow_password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    airflow_fernet_key: str = field(default_factory=_fernet_key, repr=False)
    airflow_jwt_secret: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    airflow_session_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


def load_or_create(path: Path) -> Credentials:
    """The credentials in `path`; new ones are written there first (mode 0600) if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, json.dumps(asdict(Credentials()), indent=2) + "\n")
    path.chmod(0o600)
    remedy = "delete it to have new credentials made at the next start (stored data stays readable)"
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None
    names = {f.name for f in fields(Credentials)}
    if not isinstance(values, dict) or set(values) != names:
        raise InputError(f"{path}: expected exactly the keys {', '.join(sorted(names))}; {remedy}")
    if bad := sorted(name for name, value in values.items() if not isinstance(value, str) or not value):
        raise InputError(f"{path}: {', '.join(bad)}: expected a non-empty string; {remedy}")
    return Credentials(**values)


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text` in one step; no one but the owner can read it at any moment."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
