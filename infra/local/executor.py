"""Airflow's LocalExecutor, with the imports of the tasks begun when the scheduler starts and not at the first task."""

from multiprocessing import forkserver

from airflow.executors.local_executor import LocalExecutor


class PreloadingExecutor(LocalExecutor):
    def start(self) -> None:
        """Start the process that task processes are forked from; it imports `[scheduler] mp_forkserver_preload`."""
        forkserver.ensure_running()
        super().start()
