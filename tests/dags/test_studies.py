"""The DAG files: they parse without anything heavy, in the shape of the picture, and mistakes are seen in the UI."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMBINATIONS = ("math-code-instruct", "math-code", "math-instruct", "code-instruct")
DAGS = Path(__file__).parents[2] / "dags"

PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
heavy = [name for name in ("torch", "transformers", "mlflow", "lm_eval", "boto3", "pandas") if name in sys.modules]
dags = {
    dag.dag_id: {
        "edges": sorted(f"{task.task_id} -> {down}" for task in dag.tasks for down in task.downstream_task_ids),
        "schedule": str(dag.schedule),
        "doc": dag.doc_md,
        "tags": sorted(dag.tags),
        "params": {name: dag.params[name] for name in dag.params},
        "pools": {task.task_id: task.pool for task in dag.tasks},
        "retries": {task.task_id: task.retries for task in dag.tasks},
        "names": {task.task_id: getattr(task, "map_index_template", None) for task in dag.tasks},
    }
    for dag in bag.dags.values()
}
print(json.dumps({"dags": dags, "errors": bag.import_errors, "heavy": heavy}))
"""


def parse(folder, home):
    environment = {"PATH": "/usr/bin:/bin", "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    return parse(DAGS, tmp_path_factory.mktemp("airflow"))


def test_every_study_file_is_a_dag(parsed):
    assert parsed["errors"] == {}
    assert sorted(parsed["dags"]) == sorted(path.stem for path in (DAGS / "studies").glob("*.yaml"))


def test_parsing_imports_nothing_heavy(parsed):
    assert parsed["heavy"] == []


def test_the_dag_has_the_shape_of_the_picture(parsed):
    edges = {
        *(f"plan -> todo.{step}" for step in ("fetch", "calibrate", "benchmark_inputs")),
        *(f"todo.{step} -> {step}" for step in ("fetch", "calibrate", "benchmark_inputs")),
        *(f"plan -> {step}" for step in ("fetch", "calibrate", "benchmark_inputs", "select", "promote")),
        "fetch -> calibrate",
        "fetch -> benchmark_inputs",
        "benchmark_inputs -> select",
        "select -> promote",
    }
    for combination in COMBINATIONS:
        edges |= {f"plan -> {combination}.merge", f"plan -> {combination}.benchmark"}
        edges |= {f"fetch -> {combination}.merge", f"calibrate -> {combination}.merge"}
        edges |= {f"{combination}.merge -> {combination}.benchmark", f"{combination}.benchmark -> select"}
    assert set(parsed["dags"]["tiny"]["edges"]) == edges


def test_acm_adds_the_steps_that_measure_plain_merges(tmp_path):
    folder = tmp_path / "dags"
    shutil.copytree(DAGS, folder, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    (folder / "studies").mkdir(exist_ok=True)
    acm = STUDY + "calibration: {texts: t.jsonl}\ninformed: [plain, acm, acm_uniform]\n"
    (folder / "studies" / "experts.yaml").write_text(
        acm.replace("NAME", "experts").replace("linear", "task_arithmetic")
    )
    (folder / "studies" / "merges.yaml").write_text(acm.replace("NAME", "merges"))
    found = parse(folder, tmp_path / "airflow")["dags"]
    edges = {name: {edge for edge in dag["edges"] if edge.startswith("a-b.")} for name, dag in found.items()}
    plain = {"a-b.merge -> a-b.benchmark", "a-b.benchmark -> select"}
    assert edges["experts"] == plain
    assert edges["merges"] == plain | {
        "a-b.merge -> a-b.compare",
        "a-b.compare -> a-b.merge_acm",
        "a-b.merge_acm -> a-b.benchmark_acm",
        "a-b.benchmark_acm -> select",
    }
    assert {found["merges"]["pools"][f"a-b.{step}"] for step in ("compare", "merge_acm", "benchmark_acm")} == {"gpu"}


def test_heavy_steps_share_the_gpu_pool_and_mapped_tasks_bear_names(parsed):
    tiny = parsed["dags"]["tiny"]
    heavy = {"calibrate", "benchmark_inputs"}
    heavy |= {f"{combination}.{step}" for combination in COMBINATIONS for step in ("merge", "benchmark")}
    assert {task for task, pool in tiny["pools"].items() if pool == "gpu"} == heavy
    assert {task for task, name in tiny["names"].items() if name} == {
        *(task for task in heavy if not task.endswith("merge")),
        "fetch",
    }
    assert set(tiny["retries"].values()) == {3}


def test_a_person_triggers_it_with_limit_force_and_promote(parsed):
    assert parsed["dags"]["tiny"]["params"] == {"limit": None, "force": False, "promote": True}
    assert "infra/demo/family/math" in parsed["dags"]["tiny"]["doc"]


def test_a_study_with_mistakes_shows_them_and_spares_the_others(tmp_path):
    folder = tmp_path / "dags"
    shutil.copytree(DAGS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (folder / "studies").glob("*.yaml"):
        path.unlink()
    (folder / "studies" / "good.yaml").write_text(STUDY.replace("NAME", "good"))
    (folder / "studies" / "same.yaml").write_text(STUDY.replace("NAME", "good"))
    (folder / "studies" / "cron.yaml").write_text(STUDY.replace("0 3 * * *", "nightly").replace("NAME", "cron"))
    (folder / "studies" / "zoo.yml").write_text(STUDY.replace("NAME", "task"))
    (folder / "studies" / "wrong.yaml").write_text(STUDY.replace("NAME", "wrong").replace("linear", "lineal"))
    found = parse(folder, tmp_path / "airflow")
    assert found["errors"] == {}
    assert sorted(found["dags"]) == ["cron", "good", "same", "task", "wrong"]
    assert "not a cron expression" in found["dags"]["cron"]["doc"]
    assert found["dags"]["good"]["schedule"] == "0 3 * * *"
    assert "good.yaml has the name 'good' too" in found["dags"]["same"]["doc"]
    assert "unknown merge method 'lineal'" in found["dags"]["wrong"]["doc"]
    assert found["dags"]["wrong"]["tags"] == ["invalid study", "mergeflow"]
    assert found["dags"]["wrong"]["schedule"] == "None"


def test_a_study_that_takes_a_name_is_blamed_itself(tmp_path):
    folder = tmp_path / "dags"
    shutil.copytree(DAGS, folder, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    (folder / "studies").mkdir(exist_ok=True)
    (folder / "studies" / "a.yaml").write_text(STUDY.replace("NAME", "b"))
    (folder / "studies" / "b.yaml").write_text(STUDY.replace("NAME", "b"))
    found = parse(folder, tmp_path / "airflow")
    assert sorted(found["dags"]) == ["b", "b-invalid"]
    assert found["dags"]["b"]["tags"] == ["mergeflow"]
    assert "a.yaml has the name 'b' too" in found["dags"]["b-invalid"]["doc"]


STUDY = """
name: NAME
base: org/base
experts: {a: org/a, b: org/b}
methods: [linear]
benchmarks: {math: {task: gsm8k}}
objectives: {math: maximise}
schedule: "0 3 * * *"
"""
