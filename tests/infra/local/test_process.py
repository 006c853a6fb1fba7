"""A program is started with a log, watched, and stopped with everything it started."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from infra.local.process import Process, StartError, session_members, stop_all, wait_until

# Its child is in a process group of its own and outlives it: only the session still ties them together.
WITH_STRAY_CHILD = """
import os, signal, sys, time
if not os.fork():
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("child", os.getpid(), flush=True)
    time.sleep(600)
{then}
"""


@pytest.fixture
def start(tmp_path):
    """start(python code, **options) -> a running Process."""
    started = []

    def start(code: str, **options) -> Process:
        process = Process(
            "the program",
            [sys.executable, "-c", code],
            log=tmp_path / "logs" / "program.log",
            environment=os.environ,
            directory=tmp_path,
            **options,
        )
        process.start()
        started.append(process)
        return process

    yield start
    stop_all(started)


def is_alive(pid: int) -> bool:
    """Whether it runs; what has ended may wait for its new parent to take notice."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def child_of(process: Process) -> int:
    """The process id that WITH_STRAY_CHILD printed."""
    wait_until(lambda: "child" in process.tail(), [], timeout=20)
    return int(process.tail().split()[1])


@pytest.mark.parametrize("then", ["time.sleep(600)", "time.sleep(0.2); os._exit(0)"], ids=["runs", "has ended"])
def test_stop_leaves_no_descendant(start, then):
    process = start(WITH_STRAY_CHILD.format(then=then))
    child = child_of(process)
    process.stop()
    assert not is_alive(child)
    assert session_members(process.pid) == []


def test_a_program_that_ignores_the_request_is_killed_when_patience_ends(start):
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    process = start(deaf, patience=0.3)
    wait_until(lambda: "deaf" in process.tail(), [process], timeout=20)
    process.stop()
    assert process.exit_status == -signal.SIGKILL


def test_a_program_that_ends_at_once_is_reported_with_its_last_lines(start):
    process = start("print('the reason'); raise SystemExit(3)")
    with pytest.raises(StartError) as failed:
        wait_until(lambda: False, [process], timeout=20)
    message = str(failed.value)
    assert "the program stopped (exit status 3)" in message
    assert str(process.log) in message
    assert message.endswith("the reason")


def test_only_lines_of_this_start_are_shown(start):
    first = start("print('from the first start')")
    wait_until(lambda: first.exit_status == 0, [], timeout=20)
    second = start("print('from the second start')")
    wait_until(lambda: second.exit_status == 0, [], timeout=20)
    assert second.tail() == "from the second start"


def test_a_program_that_never_gets_ready_is_reported(start):
    process = start("import time; time.sleep(600)")
    with pytest.raises(StartError, match="was not ready after 0 seconds"):
        wait_until(lambda: False, [process], timeout=0.3)


def test_a_program_ends_with_the_process_that_started_it_even_if_that_is_killed(tmp_path):
    owner_code = f"""
import os, sys, time
from pathlib import Path
from infra.local.process import Process
process = Process("sleeper", ["sleep", "600"], log=Path({str(tmp_path)!r}) / "log", environment=os.environ,
                  directory=Path({str(tmp_path)!r}))
process.start()
while Path(f"/proc/{{process.pid}}/comm").read_text().strip() != "sleep":
    time.sleep(0.05)
print(process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", owner_code], stdout=subprocess.PIPE, text=True) as owner:
        sleeper = int(owner.stdout.readline())
        owner.kill()
    wait_until(lambda: not is_alive(sleeper), [], timeout=20)


def test_a_signal_during_a_start_waits_until_the_process_is_known(tmp_path, monkeypatch):
    popen = subprocess.Popen

    def interrupted(*arguments, **options):
        started = popen(*arguments, **options)
        signal.raise_signal(signal.SIGINT)  # as if Ctrl-C came between the fork and the assignment
        return started

    monkeypatch.setattr("infra.local.process.subprocess.Popen", interrupted)
    process = Process("sleeper", ["sleep", "600"], log=tmp_path / "log", environment=os.environ, directory=tmp_path)
    # A shell's background job is started with SIGINT ignored.
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            process.start()
    finally:
        signal.signal(signal.SIGINT, previous)
        process.stop()
    assert process.exit_status == -signal.SIGTERM
    assert session_members(process.pid) == []
