"""The whole stack, as a user starts and stops it."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

import psutil
import pytest
import yaml

from infra.local.airflow_api import AirflowApi, ApiError
from infra.local.process import answers
from infra.local.settings import PROJECT
from tests.services import free_settings

DAGS = """
import json
from airflow.sdk import dag, get_current_context, task

@task
def members():
    return ["one [1]", "two [2]"]

@task(map_index_template="{{ member }}")
def work(member, bad):
    get_current_context()["member"] = member
    if member == bad:
        raise ValueError("no room for " + member)

@task
def report():
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook
    run = get_current_context()["run_id"]
    body = {"study": "good", "run": run, "objectives": [], "rows": [], "champion": None, "reused": {}}
    body |= {"not_made": {}, "length_reference": None}
    S3Hook().get_conn().put_object(Bucket="mergeflow", Key=f"studies/good/{run}/report.json", Body=json.dumps(body))

for name, bad in (("good", None), ("bad", "two [2]")):
    @dag(dag_id=name, schedule=None)
    def study():
        work.partial(bad=bad).expand(member=members()) >> report()
    study()
"""


@pytest.fixture
def settings(tmp_path):
    """A home of its own, free ports, and the DAGs of two studies: one succeeds, one has a task that fails."""
    studies = tmp_path / "dags" / "studies"
    studies.mkdir(parents=True)
    (tmp_path / "dags" / "dags.py").write_text(DAGS)
    for name in ("good", "bad"):
        study = yaml.safe_load((PROJECT / "dags" / "studies" / "tiny.yaml").read_text()) | {"name": name}
        (studies / f"{name}.yaml").write_text(yaml.safe_dump(study))
    return free_settings(tmp_path / "home")


def command(settings, *arguments: str) -> dict:
    """Arguments for subprocess: `python -m infra.local ARGUMENTS` on these settings."""
    ports = {
        f"MERGEFLOW_{name}_PORT": str(getattr(settings, f"{name.lower()}_port")) for name in ("AIRFLOW", "MLFLOW", "S3")
    }
    dags = settings.home.parent / "dags"
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

        good = subprocess.run(**command(settings, "demo", "--study", "good"), timeout=120, check=False)
        assert good.returncode == 0, good.stderr
        assert "work [two [2]]" in good.stdout
        assert good.stdout.splitlines()[-1] == "study good: 0 candidates, 0 on the front, no champion"

        bad = subprocess.run(**command(settings, "demo", "--study", "bad"), timeout=120, check=False)
        assert bad.returncode == 1
        assert "failed: work [two [2]]; the end of its log:" in bad.stdout
        assert "ValueError: no room for two [2]" in bad.stdout
        assert bad.stdout.splitlines()[-1] == "The run failed; tasks not run because of it: 1."

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
