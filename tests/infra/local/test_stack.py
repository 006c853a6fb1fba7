"""The whole stack, as a user starts and stops it."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import psutil
import pytest

from infra.local.airflow_api import AirflowApi, ApiError
from infra.local.process import answers
from infra.local.settings import PROJECT
from tests.services import free_settings


@pytest.fixture
def settings(tmp_path):
    """A home of its own, free ports and no DAGs."""
    return free_settings(tmp_path / "home")


def command(settings, *arguments: str) -> dict:
    """Arguments for subprocess: `python -m infra.local ARGUMENTS` on these settings."""
    ports = {
        f"MERGEFLOW_{name}_PORT": str(getattr(settings, f"{name.lower()}_port")) for name in ("AIRFLOW", "MLFLOW", "S3")
    }
    dags = settings.home.parent / "dags"
    dags.mkdir(exist_ok=True)
    return {
        "args": [sys.executable, "-m", "infra.local", *arguments],
        "env": {**os.environ, **ports, "MERGEFLOW_HOME": str(settings.home), "MERGEFLOW_DAGS": str(dags)},
        "cwd": PROJECT,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }


def processes_of(settings) -> list[psutil.Process]:
    """Every process that works in this home."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if str(settings.home) in " ".join([process.cwd(), *process.cmdline()]):
                found.append(process)
    return found


@contextmanager
def running(settings):
    """`up` until its last line of welcome."""
    with subprocess.Popen(**command(settings, "up")) as up:
        try:
            welcome = ""
            while "Ctrl-C" not in welcome:
                line = up.stdout.readline()
                assert line, up.stderr.read()
                welcome += line
            yield up, welcome
        finally:
            up.send_signal(signal.SIGTERM)
            up.communicate(timeout=60)


def test_up_serves_until_down_and_leaves_nothing_running(settings):
    with running(settings) as (up, welcome):
        login = welcome.split("password ")[1].split()[0]
        assert answers(f"{settings.mlflow_url}/health")

        pool = AirflowApi(settings.airflow_url, "admin", login).call("GET", "/api/v2/pools/gpu")
        assert pool["slots"] == 2
        with pytest.raises(ApiError) as refused:
            AirflowApi(settings.airflow_url, "admin", "wrong").call("GET", "/api/v2/pools/gpu")
        assert refused.value.status == 401
        loopback_only(settings)

        second = subprocess.run(**command(settings, "up"), timeout=60, check=False)
        assert second.returncode == 2
        assert "running already" in second.stderr

        down = subprocess.run(**command(settings, "down"), timeout=90, check=False)
        assert (down.returncode, down.stdout) == (0, "Stopped.\n")
        assert up.wait(10) == 0
    assert processes_of(settings) == []
    assert not (settings.home / "stack.json").exists()


def loopback_only(settings) -> None:
    """Every port that a process of this home listens on is on the loopback interface."""
    own = {process.pid for process in processes_of(settings)}
    listening = [c for c in psutil.net_connections() if c.status == psutil.CONN_LISTEN and c.pid in own]
    assert {settings.airflow_port, settings.mlflow_port, settings.s3_port} <= {c.laddr.port for c in listening}
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_a_service_that_dies_at_start_is_shown_and_takes_the_others_with_it(settings):
    database = settings.home / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    database.write_text("this is no database")
    up = subprocess.run(**command(settings, "up"), timeout=120, check=False)
    assert up.returncode == 1
    assert "MLflow stopped (exit status 1)" in up.stderr
    assert str(settings.logs / "mlflow.log") in up.stderr
    assert "file is not a database" in up.stderr
    assert "Traceback" not in up.stderr.split("its last lines:")[0]
    assert processes_of(settings) == []


def test_ctrl_c_during_the_start_leaves_nothing_running(settings):
    with subprocess.Popen(**command(settings, "up")) as up:
        while not (settings.home / "stack.json").exists():
            assert up.poll() is None, up.stderr.read()
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=60)
    assert up.returncode == 130
    assert errors == "interrupted\n"
    assert processes_of(settings) == []


def test_a_study_that_is_not_there_is_refused_before_anything_starts(settings):
    demo = subprocess.run(**command(settings, "demo", "--study", "tiney"), timeout=60, check=False)
    assert demo.returncode == 2
    assert demo.stderr.startswith("error: study 'tiney': there is no file ")
    assert len(demo.stderr.splitlines()) == 1
    assert not settings.home.exists()
