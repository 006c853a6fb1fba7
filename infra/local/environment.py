"""The environment variables through which every process finds the local services."""

import json
import os

from infra.local.credentials import Credentials
from infra.local.settings import HOST, PROJECT, Settings

REGION = "us-east-1"
# What a user's shell may hold for other installations; with it, a local process would ask the wrong service.
FOREIGN = ("AIRFLOW_", "AWS_", "MLFLOW_", "MERGEFLOW_")


def process_environment(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """The whole environment of a process: this one's, cleared of settings for other installations, and the services."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    paths = [str(PROJECT), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": os.pathsep.join(paths), **service_environment(settings, credentials)}


def service_environment(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """What a shell needs for `mlflow`, `aws` and `mergeflow` to use the local services."""
    no_proxy = [value for value in (os.environ.get("NO_PROXY"), HOST, "localhost") if value]
    return {
        "MERGEFLOW_HOME": str(settings.home),
        "MERGEFLOW_CACHE": str(settings.cache),
        "MLFLOW_TRACKING_URI": settings.mlflow_url,
        "MLFLOW_S3_ENDPOINT_URL": settings.s3_url,
        "AWS_ACCESS_KEY_ID": credentials.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.s3_secret_key,
        "AWS_ENDPOINT_URL_S3": settings.s3_url,
        "AWS_DEFAULT_REGION": REGION,
        "NO_PROXY": ",".join(no_proxy),
        **_connections(settings, credentials),
    }


def _connections(settings: Settings, credentials: Credentials) -> dict[str, str]:
    """Airflow's connections: the operators know these names and nothing of this installation."""
    s3 = {
        "conn_type": "aws",
        "login": credentials.s3_access_key,
        "password": credentials.s3_secret_key,
        "extra": {
            "endpoint_url": settings.s3_url,
            "region_name": REGION,
            "service_config": {"s3": {"bucket_name": settings.bucket}},
        },
    }
    mlflow = {"conn_type": "http", "host": f"http://{HOST}", "port": settings.mlflow_port}
    hub = {"conn_type": "http", "host": os.environ.get("HF_ENDPOINT") or "https://huggingface.co"}
    if token := os.environ.get("HF_TOKEN"):
        hub["password"] = token
    return {
        "AIRFLOW_CONN_AWS_DEFAULT": json.dumps(s3),
        "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps(mlflow),
        "AIRFLOW_CONN_HUGGINGFACE_DEFAULT": json.dumps(hub),
    }
