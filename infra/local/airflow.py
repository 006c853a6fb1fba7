"""Airflow on one machine: SQLite, LocalExecutor; task processes start with their imports done."""

import json
from importlib.metadata import version
from pathlib import Path

from infra.local.airflow_api import AirflowApi, ApiError
from infra.local.airflow_settings import GPU_SLOTS, airflow_settings
from infra.local.checks import program, require_free_ports, require_program
from infra.local.credentials import Credentials, write_private
from infra.local.environment import process_environment
from infra.local.preloaded import MARKER
from infra.local.process import Process, answers, stop_all, wait_until
from infra.local.settings import Settings

GPU_POOL = {"name": "gpu", "slots": GPU_SLOTS, "description": "The heavy steps: as many at once as the machine bears"}


class Airflow:
    """Airflow's database set-up, scheduler, DAG processor, triggerer and API server; its data is in `<home>/airflow`.

    They are started one by one: `airflow standalone` takes longer, opens log servers on all interfaces and leaves
    orphans when it is told to stop.
    """

    def __init__(self, settings: Settings, credentials: Credentials):
        self.settings, self.credentials = settings, credentials
        self.home = settings.home / "airflow"
        self.environment = {**process_environment(settings, credentials), **airflow_settings(settings, credentials)}
        self.migration = self._process("Airflow's database set-up", "db", "migrate")
        self.processes = [
            self._process("Airflow's API server", "api-server"),
            self._process("Airflow's scheduler", "scheduler", "--skip-serve-logs"),
            self._process("Airflow's DAG processor", "dag-processor"),
            # Left alone, it takes 11 s to notice; a trigger it held is taken up again at the next start.
            self._process("Airflow's triggerer", "triggerer", "--skip-serve-logs", patience=3.0),
        ]

    def check(self) -> None:
        """Raise InputError if Airflow cannot be started."""
        require_program("airflow")
        require_free_ports([self.settings.airflow_port], "Airflow", "MERGEFLOW_AIRFLOW_PORT")

    def start_migration(self) -> None:
        """Begin to bring the database to this version of Airflow, if it is not there yet."""
        self.check()
        self.home.mkdir(parents=True, exist_ok=True)
        login = {self.credentials.airflow_user: self.credentials.airflow_password}
        write_private(self.home / "passwords.json", json.dumps(login))
        if not self._migrated():
            self.migration.start()

    def start(self) -> None:
        """Finish the migration, then start the four processes."""
        if not self._migrated():
            wait_until(lambda: self.migration.exit_status == 0, [self.migration], timeout=300)
            self._stamp.write_text(version("apache-airflow-core"))
        (self.home / MARKER).unlink(missing_ok=True)
        for process in self.processes:
            process.start()

    def wait(self) -> None:
        """Return once every part of Airflow reports itself healthy and the `gpu` pool exists."""
        wait_until(self._healthy, self.processes, timeout=180)
        try:
            self.api().call("POST", "/api/v2/pools", GPU_POOL)
        except ApiError as error:
            if error.status != 409:  # it is there from an earlier start, perhaps with another size by now
                raise

    def stop(self) -> None:
        stop_all([self.migration, *self.processes])

    def api(self) -> AirflowApi:
        return AirflowApi(self.settings.airflow_url, self.credentials.airflow_user, self.credentials.airflow_password)

    def _healthy(self) -> bool:
        if not (self.home / MARKER).exists():  # or the first task of a run would wait for the imports
            return False
        # What tasks talk to is made at its first request, which takes seconds: better now than in a task's time.
        if not answers(f"{self.settings.airflow_url}/execution/health/ping"):
            return False
        try:
            health = self.api().call("GET", "/api/v2/monitor/health")
        except (ApiError, OSError):
            return False
        parts = ("metadatabase", "scheduler", "dag_processor", "triggerer")
        return all(health[part]["status"] == "healthy" for part in parts)

    @property
    def _stamp(self) -> Path:
        return self.home / "migrated-to"

    def _migrated(self) -> bool:
        """Whether this version set up the database; to ask `airflow db migrate` takes as long as to migrate."""
        done = self._stamp.read_text() if self._stamp.exists() else None
        return done == version("apache-airflow-core") and (self.home / "airflow.db").exists()

    def _process(self, name: str, *arguments: str, patience: float = 10.0) -> Process:
        return Process(
            name,
            [program("airflow"), *arguments],
            log=self.settings.logs / f"airflow-{arguments[0]}.log",
            environment=self.environment,
            directory=self.home,
            patience=patience,
        )
