"""Plan: read and check the study, pin every model, and find out what is already there. Moves no weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator

from evaluation.plan import StudyPlan
from evaluation.planning import plan_study
from evaluation.study import Study
from merging.digest import file_sha256
from merging.errors import InputError
from operators.hooks import object_store
from operators.hooks.mlflow import tracking
from operators.hooks.object_store import ObjectStore
from operators.links import MLflowLink, airflow_url
from operators.preflight import resolve_models
from operators.step import sources, typed_errors

log = logging.getLogger(__name__)


class PlanOperator(BaseOperator):
    """Returns the plan's address and, for each mapped step, the names of the members it has to work on."""

    operator_extra_links = (MLflowLink(),)

    def __init__(self, *, study_file: str, combinations: list[str], **kwargs: Any):
        super().__init__(multiple_outputs=True, **kwargs)
        self.mlflow_url = ""
        self.study_file = study_file
        self.combinations = combinations

    def execute(self, context: Any) -> dict[str, Any]:
        with typed_errors():
            store = object_store.from_connection()
            study = with_limit(Study.load(self.study_file), context["params"]["limit"])
            if ["+".join(one) for one in study.expert_combinations()] != self.combinations:
                raise InputError(f"{self.study_file}: its combinations changed a moment ago; start the run again")
            plan = self._plan(store, study, context["run_id"], context["params"])
            key = f"studies/{study.name}/{plan.run}/plan.json"
            store.write_json(key, plan.model_dump(mode="json"))
            self.mlflow_url = open_parent_run(plan, context)
        _log_plan(plan, self.mlflow_url)
        return {
            "plan": store.uri(key),
            "fetch": plan.to_fetch(),
            "calibrate": plan.to_calibrate(),
            "benchmark_inputs": plan.to_measure(),
        }

    def _plan(self, store: ObjectStore, study: Study, run: str, params: Any) -> StudyPlan:
        resolved = resolve_models(study, sources(store))
        texts = _pin_texts(store, study) if study.needs_calibration else None
        promote = params["promote"] and params["limit"] is None
        plan = plan_study(study, run, resolved, texts=texts, force=params["force"], promote=promote)
        return plan.model_copy(update={"missing": frozenset(_missing(store, plan))})


def with_limit(study: Study, limit: int | None) -> Study:
    """The study with every benchmark cut to at most `limit` questions."""
    if limit is None:
        return study
    benchmarks = {
        name: one.model_copy(update={"limit": min(limit, one.limit or limit)}) for name, one in study.benchmarks.items()
    }
    return study.model_copy(update={"benchmarks": benchmarks})


def _pin_texts(store: ObjectStore, study: Study) -> dict[str, str]:
    """A file goes to the bucket under its digest, where every worker can read it; a data set is pinned to a commit."""
    given = study.calibration
    if given.texts:
        path = study.folder / Path(given.texts).expanduser()
        sha256 = file_sha256(path)
        store.upload(f"texts/{sha256}.jsonl", path)
        return {"sha256": sha256}
    name, _, revision = given.dataset.partition("@")
    commit = sources(store).hub.dataset_commit(name, revision or None)
    return {"dataset": name, "revision": commit, "split": given.split, "field": given.field}


def _missing(store: ObjectStore, plan: StudyPlan) -> Iterable[str]:
    """Digests that no earlier run has completed; with `force`, all that can be computed again."""

    def absent(kind: Any, digest: str) -> bool:
        return (plan.force and kind != "models") or store.manifest(kind, digest) is None

    for member in [*plan.models, *plan.candidates, *plan.stages]:
        recompute = plan.force and member.kind == "candidate"
        if recompute or absent("models", member.digest):
            yield member.digest
        yield from (digest for digest in member.scores.values() if absent("scores", digest))
    for one in [plan.calibration, *plan.consensus]:
        if one and absent("calibrations", one.digest):
            yield one.digest


def mark_failed(context: Any) -> None:
    """A DAG run that failed ends its MLflow run as failed; clearing a task opens it again."""
    tracking().fail(context["dag"].dag_id, context["run_id"])


def open_parent_run(plan: StudyPlan, context: Any) -> str:
    """Start (or find) the MLflow run of this DAG run; returns its address."""
    track = tracking()
    experiment = track.experiment(plan.study.name)
    tags = {"airflow.dag_id": plan.study.name, "airflow.url": airflow_url(context)}
    run = track.parent_run(experiment, plan.run, tags)
    track.describe(run, f"[The run in Airflow]({airflow_url(context)})")
    return track.run_url(experiment, run)


def _log_plan(plan: StudyPlan, run_url: str) -> None:
    reused = ", ".join(f"{count} {step}" for step, count in plan.reused().items())
    log.info("study %s: %d candidates, %d to make", plan.study.name, len(plan.candidates), len(plan.to_make()))
    log.info("reused from earlier runs: %s", reused)
    log.info("MLflow: %s", run_url)
