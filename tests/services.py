"""Real services for tests, through the same code as `make up`. conftest.py makes the fixtures known to every test."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.local.checks import port_is_free
from infra.local.credentials import Credentials, load_or_create
from infra.local.mlflow_server import MlflowServer
from infra.local.object_store import ObjectStore
from infra.local.settings import S3_PORT_COUNT, Settings


@dataclass(frozen=True)
class S3:
    """A running object store. `settings` and `credentials` serve `infra.local.environment` for whole-stack tests."""

    endpoint: str
    key: str
    secret: str
    bucket: str
    settings: Settings
    credentials: Credentials

    def client(self, **changes: Any) -> Any:
        """A boto3 client of the store that hardly retries; `changes` of its settings are for what must fail."""
        import boto3
        from botocore.config import Config

        settings = {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.key,
            "aws_secret_access_key": self.secret,
            "region_name": "us-east-1",
            "config": Config(retries={"max_attempts": 1}, connect_timeout=2, read_timeout=30),
        }
        return boto3.client("s3", **{**settings, **changes})


def free_ports(count: int) -> int:
    """The first of `count` consecutive free ports, outside the range the kernel hands to outgoing connections."""
    chance = random.Random()
    while True:
        first = chance.randrange(10_000, 32_000)
        if all(port_is_free(port) for port in range(first, first + count)):
            return first


def free_settings(home: Path) -> Settings:
    """Settings with a home of their own and free ports."""
    first = free_ports(S3_PORT_COUNT + 2)
    ports = {"s3_port": first, "mlflow_port": first + S3_PORT_COUNT, "airflow_port": first + S3_PORT_COUNT + 1}
    return Settings(home=home, **ports)


@pytest.fixture(scope="session")
def local_settings(tmp_path_factory) -> Settings:
    """The home and ports that this test process's services share."""
    return free_settings(tmp_path_factory.mktemp("mergeflow-home"))


@pytest.fixture(scope="session")
def object_store(local_settings) -> Iterator[S3]:
    """A real SeaweedFS for the session, with an empty bucket; tests keep apart by using keys of their own."""
    credentials = load_or_create(local_settings.credentials_file)
    store = ObjectStore(local_settings, credentials)
    try:
        store.start()
        store.wait()
        yield S3(
            endpoint=local_settings.s3_url,
            key=credentials.s3_access_key,
            secret=credentials.s3_secret_key,
            bucket=local_settings.bucket,
            settings=local_settings,
            credentials=credentials,
        )
    finally:
        store.stop()


@pytest.fixture(scope="session")
def mlflow_server(object_store) -> Iterator[str]:
    """The address of a real MLflow server for the session; its artifacts go to `object_store`."""
    server = MlflowServer(object_store.settings, object_store.credentials)
    try:
        server.start()
        server.wait()
        yield object_store.settings.mlflow_url
    finally:
        server.stop()
