"""Promote: the front members that meet the requirements become versions in the registry; the best is champion."""

from __future__ import annotations

import json
import logging
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from evaluation.plan import StudyPlan
from evaluation.study_checks import RESPONSE_TOKENS
from merging.errors import InputError
from operators.hooks.mlflow import Tracking, tracking
from operators.hooks.object_store import ObjectStore
from operators.step import StudyStep, report_key

log = logging.getLogger(__name__)
ALIASES = ("champion", "challenger")


class PromoteOperator(StudyStep):
    """Adds versions and aliases to the run's report. A checkpoint registered before keeps its version."""

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> list[int]:
        report = store.read_json(report_key(plan))
        if not plan.promote:
            raise AirflowSkipException("not promoted: the run has promote off or a limit")
        if plan.study.promotion is None:
            raise AirflowSkipException("the study has no `promotion`")
        if not report["ranking"]:
            raise AirflowSkipException(_nobody(report))
        track = tracking()
        self._register(store, track, plan, report)
        track.finish(report["mlflow_run"], "FINISHED")
        store.write_json(report_key(plan), report)
        return [row["version"] for row in report["rows"] if row["version"]]

    def _register(self, store: ObjectStore, track: Tracking, plan: StudyPlan, report: dict[str, Any]) -> None:
        model = plan.study.promotion.model
        rows = {row["name"]: row for row in report["rows"]}
        for name in report["ranking"]:
            row = rows[name]
            if store.manifest("models", row["digest"]) is None:
                raise InputError(
                    f"{name}: {store.uri('models', row['digest'])} is gone; run the study again with force"
                )
            uri = store.uri("models", row["digest"])
            row["version"] = track.register(model, row["digest"], uri, row["mlflow_run"], _tags(plan, row))
            log.info("%s version %s: %s", model, row["version"], name)
        for alias, name in zip(ALIASES, [*report["ranking"], None], strict=False):
            report[alias] = name and {"name": name, "version": rows[name]["version"]}
            if name:
                track.set_alias(model, alias, rows[name]["version"])
            else:
                track.remove_alias(model, alias)
        log.info("champion: %(name)s (version %(version)s)", report["champion"])


def _tags(plan: StudyPlan, row: dict[str, Any]) -> dict[str, str]:
    candidate = plan.member(row["name"])
    tags = {
        "mergeflow.name": row["name"],
        "mergeflow.study": plan.study.name,
        "mergeflow.recipe": json.dumps(candidate.recipe),
        "mergeflow.hypervolume_gain": f"{row['hypervolume_gain']:.6f}",
    }
    for model in plan.models:
        if model.kind == "base" or model.name in candidate.combination:
            tags[f"mergeflow.input.{model.name}"] = model.digest
    for benchmark, score in row["scores"].items():
        tags[f"score.{benchmark}"] = f"{score['value']:.6f}"
        if score[RESPONSE_TOKENS] is not None:
            tags[f"{RESPONSE_TOKENS}.{benchmark}"] = f"{score[RESPONSE_TOKENS]:.2f}"
    return tags


def _nobody(report: dict[str, Any]) -> str:
    """Why no candidate is promoted, with what each front member lacks."""
    on_front = [row for row in report["rows"] if row["kind"] == "candidate" and row["on_front"]]
    lacking = "; ".join(f"{row['name']}: {', '.join(row['unmet'])}" for row in on_front)
    return f"nothing to promote: {lacking or 'no candidate is on the front'}"
