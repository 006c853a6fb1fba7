"""One DAG for every study file in dags/studies/.

plan -> fetch[] -> calibrate[] -> ( merge -> benchmark[] ) for each combination of experts -> select -> promote

With ACM of other methods than task arithmetic: merge -> compare -> merge_acm -> benchmark_acm[].
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from airflow.sdk import DAG, Param, TaskGroup, task

from evaluation.study import Study
from merging.errors import InputError
from operators.benchmark import BenchmarkOperator
from operators.calibrate import CalibrateOperator
from operators.consensus import ConsensusOperator
from operators.fetch import FetchOperator
from operators.invalid import invalid_study_dag
from operators.merge import MergeOperator
from operators.plan import PlanOperator, mark_failed
from operators.promote import PromoteOperator
from operators.select import SelectOperator

PARAMS = {
    "limit": Param(
        None,
        type=["null", "integer"],
        minimum=1,
        description="A trial: at most this many questions per benchmark, nothing promoted",
    ),
    "force": Param(False, type="boolean", description="Compute everything again, also what earlier runs left"),
    "promote": Param(True, type="boolean", description="Register the best candidates in the model registry"),
}
DEFAULTS = {
    "retries": 3,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "trigger_rule": "none_failed",
}


STEPS = ("fetch", "calibrate", "benchmark_inputs")


@task
def members(plan: dict, step: str) -> list[str]:
    """What a mapped step has to work on; Airflow maps over nothing but a task's whole return value."""
    return plan[step]


def study_dag(path: Path, study: Study) -> DAG:
    with DAG(
        study.name,
        schedule=study.schedule,
        start_date=datetime(2026, 1, 1),
        catchup=False,
        params=PARAMS,
        default_args=DEFAULTS,
        doc_md=study.describe(),
        tags=["mergeflow"],
        on_failure_callback=mark_failed,
    ) as dag:
        combinations = study.expert_combinations()
        plan = PlanOperator(
            task_id="plan", study_file=str(path), combinations=["+".join(combination) for combination in combinations]
        )
        with TaskGroup("todo", tooltip="What no earlier run has done"):
            todo = {step: members.override(task_id=step)(plan.output, step) for step in STEPS}
        named = {"plan": plan.output["plan"], "map_index_template": "{{ task.member }}"}
        heavy = {**named, "pool": "gpu"}

        fetch = FetchOperator.partial(task_id="fetch", **named).expand(member=todo["fetch"])
        calibrate = CalibrateOperator.partial(task_id="calibrate", **heavy).expand(member=todo["calibrate"])
        measure = BenchmarkOperator.partial(task_id="benchmark_inputs", **heavy).expand(member=todo["benchmark_inputs"])

        select = SelectOperator(task_id="select", plan=plan.output["plan"])
        fetch >> [calibrate, measure]
        measure >> select >> PromoteOperator(task_id="promote", plan=plan.output["plan"])

        for combination in combinations:
            with TaskGroup("-".join(combination), group_display_name="+".join(combination)):
                merge = MergeOperator(
                    task_id="merge", plan=plan.output["plan"], member="+".join(combination), pool="gpu"
                )
                benchmark = BenchmarkOperator.partial(task_id="benchmark", **heavy).expand(member=merge.output)
                [fetch, calibrate] >> merge
                benchmark >> select
                if study.scales_merges:
                    shared = {"plan": plan.output["plan"], "member": "+".join(combination), "pool": "gpu"}
                    compare = ConsensusOperator(task_id="compare", **shared)
                    scale = MergeOperator(task_id="merge_acm", scaled=True, **shared)
                    measured = BenchmarkOperator.partial(task_id="benchmark_acm", **heavy).expand(member=scale.output)
                    merge >> compare >> scale
                    measured >> select
    return dag


def all_dags(folder: Path) -> dict[str, DAG]:
    """Every study's DAG by name; a file with mistakes gets a DAG that says so, and spares the others."""
    dags: dict[str, DAG] = {}
    files: dict[str, str] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            study = Study.load(path)
            if study.name in dags:
                raise InputError(
                    f"{path}: name: {files[study.name]} has the name {study.name!r} too; change one of them"
                )
            found = study_dag(path, study)
        except InputError as error:
            found = invalid_study_dag(path, error, taken=dags)
        except Exception as error:
            found = invalid_study_dag(path, InputError(f"{path}: no DAG can be made of it: {error}"), taken=dags)
        dags[found.dag_id], files[found.dag_id] = found, path.name
    return dags


globals().update(all_dags(Path(__file__).parent / "studies"))
