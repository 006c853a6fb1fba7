"""The MLflow tracking server and model registry: SQLite, with its artifacts in the object store."""

from infra.local.checks import find_program, require_free_ports
from infra.local.credentials import Credentials
from infra.local.environment import process_environment
from infra.local.process import Process, answers, wait_until
from infra.local.settings import HOST, Settings


class MlflowServer:
    """One MLflow server; its database is `<home>/mlflow/mlflow.db`."""

    def __init__(self, settings: Settings, credentials: Credentials):
        self.settings, self.credentials = settings, credentials
        self.process: Process | None = None

    def start(self) -> None:
        """Start the server. The object store need not answer yet: only artifacts go there.

        Raises:
            InputError: the program is missing or the port is in use.
        """
        mlflow = find_program("mlflow")
        require_free_ports([self.settings.mlflow_port], "MLflow", "MERGEFLOW_MLFLOW_PORT")
        folder = self.settings.home / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        self.process = Process(
            "MLflow",
            [
                mlflow,
                "server",
                f"--backend-store-uri=sqlite:///{folder / 'mlflow.db'}",
                f"--artifacts-destination=s3://{self.settings.bucket}/mlflow",
                f"--host={HOST}",
                f"--port={self.settings.mlflow_port}",
                "--workers=1",
            ],
            log=self.settings.logs / "mlflow.log",
            environment={
                **process_environment(self.settings, self.credentials),
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "MLFLOW_DISABLE_TELEMETRY": "true",
            },
            directory=folder,
        )
        self.process.start()

    def wait(self, others: tuple[Process, ...] = ()) -> None:
        """Return once it answers."""
        wait_until(lambda: answers(f"{self.settings.mlflow_url}/health"), self.process, others)

    def stop(self) -> None:
        if self.process:
            self.process.stop()
