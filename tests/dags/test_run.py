"""A study from file to registry: the real DAG against a real object store and a real MLflow."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow import MlflowClient

from infra.local.environment import process_environment
from operators.hooks.object_store import ObjectStore

PROJECT = Path(__file__).parents[2]
FAMILY = PROJECT / "infra" / "demo" / "family"

STUDY = {
    "name": "small",
    "base": str(FAMILY / "base"),
    "experts": {"math": str(FAMILY / "math"), "code": str(FAMILY / "code")},
    "methods": ["linear", {"merge_method": "ties", "parameters": {"density": 0.5}}],
    "informed": ["plain", {"aim": {"omega": 0.4}}],
    "calibration": {"texts": str(PROJECT / "infra" / "demo" / "calibration.jsonl"), "samples": 16, "block": 64},
    "benchmarks": {
        "math": {"task": "tiny_math", "limit": 20, "batch_size": 20},
        "code": {"task": "tiny_code", "limit": 20, "batch_size": 20},
    },
    "objectives": {"math": "maximise", "code": "maximise"},
    "promotion": {"model": "small-merge"},
}


class Workflow:
    """A dags folder with one study, and the means to run it."""

    def __init__(self, folder, environment):
        self.dags = folder / "dags"
        self.environment = {**environment, "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags)}
        shutil.copytree(PROJECT / "dags", self.dags, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
        self.write({})

    def write(self, changes):
        (self.dags / "studies").mkdir(exist_ok=True)
        (self.dags / "studies" / "small.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))

    def run(self, **conf):
        command = [sys.executable, PROJECT / "tests" / "dags" / "run_dag.py", self.dags, "small", json.dumps(conf)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        assert lines, (done.stdout + done.stderr)[-3000:]
        result = json.loads(lines[-1].removeprefix("RESULT "))
        result["log"] = done.stdout + done.stderr
        return result


@pytest.fixture(scope="module")
def environment(object_store, mlflow_server, tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    variables = process_environment(object_store.settings, object_store.credentials) | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ["PATH"],
    }
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=variables, check=True, capture_output=True)
    pool = ["airflow", "pools", "set", "gpu", "2", "heavy steps"]
    subprocess.run([sys.executable, "-m", *pool], env=variables, check=True, capture_output=True)
    return variables


@pytest.fixture(scope="module")
def workflow(environment, tmp_path_factory):
    return Workflow(tmp_path_factory.mktemp("workflow"), environment)


@pytest.fixture(scope="module")
def first(workflow):
    return workflow.run()


@pytest.fixture
def store(object_store, tmp_path):
    return ObjectStore(object_store.client(), object_store.bucket, cache=tmp_path / "cache")


@pytest.fixture
def service(environment, monkeypatch):
    for name in ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, environment[name])
    mlflow.set_tracking_uri(environment["MLFLOW_TRACKING_URI"])
    return MlflowClient(environment["MLFLOW_TRACKING_URI"])


def report_of(store, result):
    return store.read_json(f"studies/small/{result['run']}/report.json")


def states(result):
    return Counter((one["task"], one["state"]) for one in result["tasks"])


def test_the_first_run_does_every_step(first):
    assert first["state"] == "success", first["log"][-3000:]
    assert states(first) == {
        ("plan", "success"): 1,
        **{(f"todo.{step}", "success"): 1 for step in ("fetch", "calibrate", "benchmark_inputs")},
        ("fetch", "success"): 3,
        ("calibrate", "success"): 1,
        ("benchmark_inputs", "success"): 3,
        ("math-code.merge", "success"): 1,
        ("math-code.benchmark", "success"): 4,
        ("select", "success"): 1,
        ("promote", "success"): 1,
    }


def test_mapped_tasks_are_named_after_what_they_work_on(first):
    names = {one["name"] for one in first["tasks"] if one["task"] == "math-code.benchmark"}
    assert names == {
        "linear math+code",
        "linear+aim(w=0.4) math+code",
        "ties(d=0.5) math+code",
        "ties(d=0.5)+aim(w=0.4) math+code",
    }
    assert {one["name"] for one in first["tasks"] if one["task"] == "fetch"} == {"base", "math", "code"}


def test_the_report_ranks_and_names_a_champion(first, store):
    report = report_of(store, first)
    assert len(report["rows"]) == 7
    assert report["champion"]["name"] == report["ranking"][0]
    assert {row["name"] for row in report["rows"] if row["version"]} == set(report["ranking"])
    assert all(row["scores"]["math"]["samples"] == 20 for row in report["rows"])


def test_mlflow_shows_every_member_under_the_run(first, store, service):
    report = report_of(store, first)
    experiment = service.get_experiment_by_name("small")
    runs = {run.info.run_name: run for run in service.search_runs([experiment.experiment_id])}
    for row in report["rows"]:
        run = runs[row["name"]]
        assert run.data.metrics["math"] == pytest.approx(row["scores"]["math"]["value"])
        assert run.data.metrics["on_front"] == float(row["on_front"])
        assert "mlflow.parentRunId" in run.data.tags
    ties = runs["ties(d=0.5)+aim(w=0.4) math+code"].data
    assert ties.params["method"] == "ties"
    assert ties.params["density"] == "0.5"
    assert ties.params["omega"] == "0.4"
    assert ties.params["combination"] == "math+code"
    parent = service.get_run(ties.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    names = {item.path for item in service.list_artifacts(parent.info.run_id)}
    assert {"front.html", "front.png", "candidates.md"} <= names


def test_the_champion_comes_out_of_the_registry_and_speaks(first, store, service, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = report_of(store, first)
    version = service.get_model_version_by_alias("small-merge", "champion")
    assert int(version.version) == report["champion"]["version"]
    folder = mlflow.artifacts.download_artifacts("models:/small-merge@champion", dst_path=str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer("1+1=", return_tensors="pt", return_token_type_ids=False)
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert report["champion"]["name"] in (Path(folder) / "README.md").read_text()


def test_a_second_run_computes_nothing_and_promotes_nothing_twice(first, workflow, store, service):
    second = workflow.run()
    assert second["state"] == "success", second["log"][-3000:]
    done = {task for task, state in states(second) if state == "success" and not task.startswith("todo.")}
    assert done == {"plan", "math-code.merge", "select", "promote"}
    before, after = report_of(store, first), report_of(store, second)
    assert after["reused"] == {"fetch": 3, "calibrate": 1, "merge": 4, "benchmark": 14}
    assert after["champion"] == before["champion"]
    assert len(service.search_model_versions("name='small-merge'")) == len(before["ranking"])


def test_another_limit_scores_that_benchmark_again_and_nothing_else(first, workflow):
    workflow.write({"benchmarks": {**STUDY["benchmarks"], "code": {**STUDY["benchmarks"]["code"], "limit": 10}}})
    result = workflow.run(promote=False)
    assert result["state"] == "success", result["log"][-3000:]
    ran = states(result)
    assert ran["math-code.benchmark", "success"] == 4
    assert ("fetch", "success") not in ran
    assert ("calibrate", "success") not in ran
    assert ran["promote", "skipped"] == 1


def test_a_trial_with_a_limit_promotes_nothing(first, workflow, service):
    workflow.write({})
    before = len(service.search_model_versions("name='small-merge'"))
    result = workflow.run(limit=4)
    assert result["state"] == "success", result["log"][-3000:]
    assert states(result)["promote", "skipped"] == 1
    assert len(service.search_model_versions("name='small-merge'")) == before


def test_a_new_method_makes_only_its_candidates(first, workflow):
    workflow.write({"methods": [*STUDY["methods"], "task_arithmetic"], "informed": [{"aim": {"omega": 0.4}}]})
    result = workflow.run(promote=False)
    assert result["state"] == "success", result["log"][-3000:]
    made = {
        one["name"] for one in result["tasks"] if one["task"] == "math-code.benchmark" and one["state"] == "success"
    }
    assert made == {"task_arithmetic+aim(w=0.4) math+code"}
    assert ("benchmark_inputs", "success") not in states(result)


def test_a_candidate_that_overflows_is_left_out(first, workflow, store):
    overflow = {"merge_method": "task_arithmetic", "parameters": {"lambda": 1e39}}
    workflow.write({"methods": ["linear", overflow], "informed": ["plain"]})
    result = workflow.run(promote=False)
    assert result["state"] == "success", result["log"][-3000:]
    assert states(result)["math-code.merge", "success"] == 1
    assert "math-code.benchmark" not in {task for task, state in states(result) if state == "success"}
    report = report_of(store, result)
    [(name, reason)] = report["not_made"].items()
    assert name == "task_arithmetic(l=1e+39) math+code"
    assert "holds NaN or Inf: the merge overflowed" in reason
    assert [row["name"] for row in report["rows"] if row["kind"] == "candidate"] == ["linear math+code"]
    workflow.write({})


def test_a_mistake_fails_the_plan_at_once_with_its_lines(workflow):
    workflow.write({"experts": {**STUDY["experts"], "code": str(PROJECT / "docs")}})
    result = workflow.run()
    assert result["state"] == "failed"
    plan = next(one for one in result["tasks"] if one["task"] == "plan")
    assert (plan["state"], plan["try"]) == ("failed", 1)
    assert "code: " in result["log"]
    assert "no safetensors weights there" in result["log"]


def test_acm_measures_experts_and_plain_merges_before_it_scales(first, workflow, store):
    changes = {"methods": ["task_arithmetic", "linear"], "informed": ["acm", "acm_shuffled"]}
    workflow.write(changes)
    result = workflow.run(promote=False, limit=5)
    assert result["state"] == "success", result["log"][-3000:]
    ran = states(result)
    assert ran["calibrate", "success"] == 2
    assert ran["math-code.compare", "success"] == ran["math-code.merge_acm", "success"] == 1
    names = {task: {one["name"] for one in result["tasks"] if one["task"] == f"math-code.{task}"} for task in MEASURED}
    ways = ("acm(t=0.7)", "acm_shuffled(t=0.7)")
    assert names["benchmark"] == {f"task_arithmetic+{way} math+code" for way in ways}
    assert names["benchmark_acm"] == {f"linear+{way} math+code" for way in ways}
    assert {row["t"] for row in report_of(store, result)["rows"] if row["kind"] == "candidate"} == {0.7}
    workflow.write({**changes, "informed": [{"acm": {"t": 1.5}}]})
    again = states(workflow.run(promote=False, limit=5))
    assert ("calibrate", "success") not in again
    assert again["math-code.benchmark_acm", "success"] == 1
    workflow.write({})


MEASURED = ("benchmark", "benchmark_acm")
