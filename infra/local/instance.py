"""One running stack per home: the claim, the record of what it started, and how another terminal stops it."""

import fcntl
import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from infra.local.credentials import write_private
from infra.local.process import Process, end_session
from infra.local.settings import Settings
from merging.errors import InputError

PATIENCE = 60.0


class Instance:
    """The claim on a home. The kernel gives it up with the process that holds it, however that ends."""

    def __init__(self, home: Path):
        self.home, self._record_file = home, home / "stack.json"
        self._lock: int | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object holds the claim."""
        return self._lock is not None

    def claim(self) -> None:
        """Take the claim, and end what an earlier stack that was killed may have left.

        Raises:
            InputError: another process holds it.
        """
        lock = os.open(self.home / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            owner = self.record().get("owner", ["unknown"])[0]
            raise InputError(
                f"{self.home}: its services are running already (process {owner}); stop them with `make down`, "
                "or set MERGEFLOW_HOME and the ports for a second installation"
            ) from None
        self._lock = lock
        self._end_leftovers()

    def release(self) -> None:
        self._record_file.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None

    def write_record(self, ports: dict[str, int], processes: Sequence[Process]) -> None:
        """Note who holds the claim, the ports, and the processes started so far."""
        started = [_identity(process.pid) for process in processes if process.exit_status is None and process.pid]
        write_private(
            self._record_file, json.dumps({"owner": _identity(os.getpid()), "ports": ports, "started": started})
        )

    def record(self) -> dict:
        """What the holder of the claim noted; {} if there is nothing."""
        try:
            return json.loads(self._record_file.read_text())
        except (OSError, ValueError):
            return {}

    def settings(self, settings: Settings) -> Settings:
        """`settings` with the ports of the stack that runs in this home, if one does."""
        return replace(settings, **self.record().get("ports", {}))

    def is_claimed(self) -> bool:
        """Whether a stack is running in this home."""
        try:
            self.claim()
        except InputError:
            return True
        os.close(self._lock)
        self._lock = None
        return False

    def stop_running(self) -> bool:
        """End the stack of another process and return whether there was one."""
        if not self.is_claimed():
            return False
        owner = _find(*self.record().get("owner", (0, 0)))
        if owner:
            owner.terminate()
        deadline = time.monotonic() + PATIENCE
        while self.is_claimed():
            if time.monotonic() > deadline and owner:
                owner.kill()
            time.sleep(0.2)
        return True

    def _end_leftovers(self) -> None:
        for pid, created in self.record().get("started", []):
            # A process id is not given away while a session of that id has members; it may have been since.
            if _find(pid, created) or not psutil.pid_exists(pid):
                end_session(pid)
        self._record_file.unlink(missing_ok=True)


def _identity(pid: int) -> tuple[int, float]:
    return pid, psutil.Process(pid).create_time()


def _find(pid: int, created: float) -> psutil.Process | None:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if abs(process.create_time() - created) < 1.0:
            return process
    return None
