"""Start a program, wait until it is ready, stop it with everything it started."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from infra.local import tied
from infra.local.signals import signals_held_back
from merging.errors import MergeflowError

TAIL_LINES = 15


class StartError(MergeflowError):
    """A program ended that should run, or did not answer in time."""


class Process:
    """A program in a session of its own: the session holds all its descendants, whatever their parents.

    `patience` is how long it may take to end when asked to, in seconds, before its session is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        directory: Path,
        patience: float = 10.0,
    ):
        self.name, self.command, self.log = name, [str(part) for part in command], log
        self.environment, self.directory = dict(environment), directory
        self.patience = patience
        self._popen: subprocess.Popen | None = None
        self._log_start = 0
        self._deadline: float | None = None

    def start(self) -> None:
        """Start it with its output appended to the log file. To be called from the main thread (see tied.py)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        # A signal between the fork and the assignment would leave a process that no one knows of.
        with self.log.open("ab") as log, signals_held_back():
            self._log_start, self._deadline = log.tell(), None
            self._popen = subprocess.Popen(
                [sys.executable, "-I", tied.__file__, str(os.getpid()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.directory,
                start_new_session=True,
            )

    @property
    def pid(self) -> int | None:
        """Its process id, which is also the id of its session."""
        return self._popen.pid if self._popen else None

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._popen.poll() if self._popen else None

    def tail(self) -> str:
        """The last lines it wrote since it was started."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, self.log.stat().st_size - 20_000))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-TAIL_LINES:])

    def request_stop(self) -> None:
        """Ask it to end; `stop` then waits for the rest of its patience only."""
        if self._popen and self._deadline is None:
            self._deadline = time.monotonic() + self.patience
            if self._popen.poll() is None:
                self._popen.terminate()

    def stop(self) -> None:
        """End it, and leave nothing of it behind."""
        if not self._popen:
            return
        self.request_stop()
        try:
            self._popen.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        finally:
            end_session(self._popen.pid)


def stop_all(processes: Sequence[Process]) -> None:
    """Stop them at the same time."""
    for process in processes:
        process.request_stop()
    for process in processes:
        process.stop()


def wait_until(ready: Callable[[], bool], processes: Sequence[Process], timeout: float = 120) -> None:
    """Return once `ready()` is true.

    Raises:
        StartError: one of `processes` ended meanwhile, or `timeout` seconds passed; with its last log lines.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        require_running(processes)
        if time.monotonic() > deadline:
            raise StartError(f"{processes[0].name} was not ready after {timeout:.0f} seconds{_evidence(processes[0])}")
        time.sleep(0.1)


def require_running(processes: Sequence[Process]) -> None:
    """Raise StartError with the last log lines of the first that has ended."""
    for process in processes:
        if process.exit_status is not None:
            raise StartError(f"{process.name} stopped (exit status {process.exit_status}){_evidence(process)}")


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds within two seconds; asked directly, never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def end_session(session: int) -> None:
    """Kill every process of a session and return once they are gone."""
    while members := session_members(session):
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members, timeout=1)


def session_members(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def _evidence(process: Process) -> str:
    lines = process.tail()
    return f"; log: {process.log}" + (f"; its last lines:\n{lines}" if lines else "; it wrote nothing")
