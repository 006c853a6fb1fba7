"""Where the local services keep their data and which ports they use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
S3_PORT_COUNT = 8


@dataclass(frozen=True)
class Settings:
    """One local installation. SeaweedFS uses S3_PORT_COUNT consecutive ports, `s3_port` being the first."""

    home: Path
    dags: Path = PROJECT / "dags"
    airflow_port: int = 8080
    mlflow_port: int = 5000
    s3_port: int = 8333
    bucket: str = "mergeflow"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read MERGEFLOW_HOME, MERGEFLOW_DAGS and MERGEFLOW_{AIRFLOW,MLFLOW,S3}_PORT.

        Raises:
            InputError: a port that is no port, or ports that overlap; all problems at once.
        """
        problems: list[str] = []
        settings = cls(
            home=Path(environment.get("MERGEFLOW_HOME") or PROJECT / ".mergeflow").expanduser().resolve(),
            dags=Path(environment.get("MERGEFLOW_DAGS") or PROJECT / "dags").expanduser().resolve(),
            airflow_port=_port(environment, "MERGEFLOW_AIRFLOW_PORT", cls.airflow_port, problems),
            mlflow_port=_port(environment, "MERGEFLOW_MLFLOW_PORT", cls.mlflow_port, problems),
            s3_port=_port(environment, "MERGEFLOW_S3_PORT", cls.s3_port, problems),
        )
        for name in ("airflow", "mlflow"):
            if getattr(settings, f"{name}_port") in settings.s3_ports:
                problems.append(
                    f"MERGEFLOW_{name.upper()}_PORT: {getattr(settings, f'{name}_port')} is one of the ports "
                    f"{settings.s3_ports[0]}-{settings.s3_ports[-1]} that MERGEFLOW_S3_PORT sets aside; choose another"
                )
        if settings.airflow_port == settings.mlflow_port:
            problems.append(f"MERGEFLOW_AIRFLOW_PORT and MERGEFLOW_MLFLOW_PORT are both {settings.mlflow_port}")
        if problems:
            raise InputError(problems)
        return settings

    @property
    def s3_ports(self) -> range:
        """All the ports of SeaweedFS: S3, master, volume and filer, each with its gRPC port."""
        return range(self.s3_port, self.s3_port + S3_PORT_COUNT)

    @property
    def s3_url(self) -> str:
        return f"http://{HOST}:{self.s3_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://{HOST}:{self.mlflow_port}"

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.airflow_port}"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def credentials_file(self) -> Path:
        return self.home / "credentials.json"


def _port(environment: Mapping[str, str], name: str, default: int, problems: list[str]) -> int:
    text = environment.get(name) or str(default)
    highest = 65535 - (S3_PORT_COUNT - 1 if name == "MERGEFLOW_S3_PORT" else 0)
    if not text.isdecimal() or not 1 <= int(text) <= highest:
        problems.append(f"{name}: {text!r} is not a port number; give one from 1 to {highest}")
        return default
    return int(text)
