"""Start a program, wait until it is ready, stop it with everything it started."""

import os
import signal
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
from merging.errors import MergeflowError

TAIL_LINES = 15


class StartError(MergeflowError):
    """A program ended, or did not answer, while it was being started."""


class Process:
    """A program in a session of its own: the session holds all its descendants, whatever their parents.

    `stop_signal` asks it to end; `patience` is how long it may take, in seconds, before its session is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str],
        directory: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        patience: float = 10.0,
    ):
        self.name, self.command, self.log = name, [str(part) for part in command], log
        self.environment, self.directory = dict(environment), directory
        self.stop_signal, self.patience = stop_signal, patience
        self._popen: subprocess.Popen | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start it with its output appended to the log file. To be called from the main thread (see tied.py)."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
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
    def session(self) -> int | None:
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
        if self._popen and self._popen.poll() is None:
            self._popen.send_signal(self.stop_signal)

    def stop(self) -> None:
        """Ask it to end, give it `patience` seconds, and leave nothing of it behind."""
        if not self._popen:
            return
        self.request_stop()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._popen.wait(self.patience)
        finally:
            end_session(self._popen.pid)
            self._popen.wait()


def wait_until(ready: Callable[[], bool], process: Process, others: Sequence[Process] = (), timeout: float = 120) -> None:
    """Return once `ready()` is true.

    Raises:
        StartError: `process` or one of `others` ended meanwhile, or `timeout` seconds passed; with the last log lines.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        for one in (process, *others):
            if one.exit_status is not None:
                raise StartError(f"{one.name} stopped while starting (exit status {one.exit_status}){_evidence(one)}")
        if time.monotonic() > deadline:
            raise StartError(f"{process.name} was not ready after {timeout:.0f} seconds{_evidence(process)}")
        time.sleep(0.1)


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
