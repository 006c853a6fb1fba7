"""The three services together: started concurrently, stopped together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from infra.local.airflow import Airflow
from infra.local.credentials import load_or_create
from infra.local.instance import Instance
from infra.local.mlflow_server import MlflowServer
from infra.local.object_store import ObjectStore
from infra.local.process import require_running, stop_all
from infra.local.settings import Settings
from infra.local.signals import signals_held_back


class Stack:
    """SeaweedFS, MLflow and Airflow. As a context manager it runs them: all that it started is gone when it is left."""

    def __init__(self, settings: Settings):
        settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings, self.instance = settings, Instance(settings.home)
        self.credentials = load_or_create(settings.credentials_file)
        self.store = ObjectStore(settings, self.credentials)
        self.mlflow = MlflowServer(settings, self.credentials)
        self.airflow = Airflow(settings, self.credentials)
        self.processes = [*self.store.processes, *self.mlflow.processes, *self.airflow.processes]

    def __enter__(self) -> "Stack":
        self.instance.claim()
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *error) -> None:
        self._stop()

    def require_running(self) -> None:
        """Raise StartError if one of the processes has ended."""
        require_running(self.processes)

    def _start(self) -> None:
        services = (self.store, self.mlflow, self.airflow)
        for service in services:
            service.check()
        # Each mostly imports for its first seconds: together they keep the cores busy from the beginning.
        self.airflow.start_migration()
        self.store.start()
        self.mlflow.start()
        self._note()
        self.airflow.start()
        self._note()
        for service in services:
            service.wait()
        self.require_running()

    def _stop(self) -> None:
        with signals_held_back():
            # The object store last: a task that is ending may still write.
            stop_all([*self.airflow.processes, self.airflow.migration, *self.mlflow.processes])
            self.store.stop()
            self.instance.release()

    def _note(self) -> None:
        ports = {name: getattr(self.settings, name) for name in ("airflow_port", "mlflow_port", "s3_port")}
        self.instance.write_record(ports, [self.airflow.migration, *self.processes])


@contextmanager
def running_stack(settings: Settings, say: Callable[[str], None]) -> Iterator[Stack]:
    """The stack that another process runs in this home, else one of our own for as long as it is needed."""
    instance = Instance(settings.home)
    if settings.home.exists() and instance.is_claimed():
        say("Using the services that are running already.")
        yield Stack(instance.settings(settings))
        return
    say("Starting SeaweedFS, MLflow and Airflow ...")
    with Stack(settings) as stack:
        try:
            yield stack
        finally:
            say("Stopping the services ...")
