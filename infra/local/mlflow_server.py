"""The MLflow tracking server and model registry: SQLite, with its artifacts in the object store."""

import sys

from infra.local.checks import require_free_ports
from infra.local.credentials import Credentials
from infra.local.environment import process_environment
from infra.local.process import Process, answers, wait_until
from infra.local.settings import HOST, Settings


class MlflowServer:
    """One MLflow server; its database is `<home>/mlflow/mlflow.db`."""

    def __init__(self, settings: Settings, credentials: Credentials):
        self.settings = settings
        folder = settings.home / "mlflow"
        database, artifacts = f"sqlite:///{folder / 'mlflow.db'}", f"s3://{settings.bucket}/mlflow"
        self.process = Process(
            "MLflow",
            [sys.executable, "-m", "infra.local.mlflow_app", database, artifacts, HOST, settings.mlflow_port],
            log=settings.logs / "mlflow.log",
            environment={
                **process_environment(settings, credentials),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            directory=folder,
        )
        self.processes = [self.process]

    def check(self) -> None:
        """Raise InputError if the server cannot be started."""
        require_free_ports([self.settings.mlflow_port], "MLflow", "MERGEFLOW_MLFLOW_PORT")

    def start(self) -> None:
        """Start the server. The object store need not answer yet: only artifacts go there."""
        self.check()
        self.process.start()

    def wait(self) -> None:
        """Return once it answers; StartError if it does not."""
        wait_until(lambda: answers(f"{self.settings.mlflow_url}/health"), self.processes)

    def stop(self) -> None:
        self.process.stop()
