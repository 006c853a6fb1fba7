"""One stack per home, and what a killed one left is ended by the next."""

import os
import subprocess

import psutil
import pytest

from infra.local.instance import Instance
from infra.local.process import Process
from infra.local.settings import Settings
from merging.errors import InputError


def test_a_second_claim_is_refused_until_the_first_is_released(tmp_path):
    first, second = Instance(tmp_path), Instance(tmp_path)
    first.claim()
    first.write_record({}, [])
    with pytest.raises(InputError, match=f"running already \\(process {os.getpid()}\\)"):
        second.claim()
    assert second.is_claimed()
    first.release()
    assert not second.is_claimed()


def test_a_claim_ends_what_an_earlier_stack_left(tmp_path):
    # Not tied to this process, as if its own end had not reached it.
    left = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        stray = Process("stray", ["sleep"], log=tmp_path / "log", environment={}, directory=tmp_path)
        stray._popen = left
        dead = Instance(tmp_path)
        dead.claim()
        dead.write_record({}, [stray])
        os.close(dead._lock)  # the kernel does this when a process is killed; the record stays

        Instance(tmp_path).claim()
        assert not psutil.pid_exists(left.pid)
        assert not (tmp_path / "stack.json").exists()
    finally:
        left.kill()


def test_a_recorded_process_id_that_now_belongs_to_another_is_left_alone(tmp_path):
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        created = psutil.Process(other.pid).create_time()
        (tmp_path / "stack.json").write_text(f'{{"started": [[{other.pid}, {created - 100}]]}}')
        Instance(tmp_path).claim()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_down_with_nothing_running_says_so(tmp_path):
    assert Instance(tmp_path).stop_running() is False


def test_a_shell_learns_the_ports_of_the_stack_that_runs(tmp_path):
    instance = Instance(tmp_path)
    own = Settings(home=tmp_path)
    assert instance.settings(own) == own
    instance.claim()
    instance.write_record({"airflow_port": 1, "mlflow_port": 2, "s3_port": 3}, [])
    seen = Instance(tmp_path).settings(own)
    assert (seen.airflow_port, seen.mlflow_port, seen.s3_port) == (1, 2, 3)
    instance.release()
    assert Instance(tmp_path).settings(own) == own
