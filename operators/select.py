"""Select: gather every score, find the front, and record the whole run in MLflow. Writes the run's report."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from evaluation.plan import PlannedCandidate, PlannedModel, StudyPlan
from merging.errors import InputError, TransientError
from operators.activations import importance_files, lambda_files
from operators.hooks.mlflow import tracking
from operators.hooks.object_store import ObjectStore
from operators.links import MLflowLink, airflow_url
from operators.merge import not_made
from operators.step import StudyStep, report_key

log = logging.getLogger(__name__)


class SelectOperator(StudyStep):
    """Returns the address of the run's report.json."""

    operator_extra_links = (MLflowLink(),)
    mlflow_url = ""

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> str:
        from evaluation.report import build_report

        candidates = {one.name for one in plan.candidates}
        refused = {name: reason for name, reason in not_made(store, plan).items() if name in candidates}
        scores = gather_scores(store, plan, without=refused)
        track = tracking()
        experiment = track.experiment(plan.study.name)
        parent = track.parent_run(experiment, plan.run, {})
        for name, reason in refused.items():
            log.warning("not made: %s: %s", name, reason)
            track.log_member(parent, **_refusal(plan, plan.member(name), reason))
        if refused and len(refused) == len(plan.candidates):
            raise InputError([f"no candidate could be made: {name}: {reason}" for name, reason in refused.items()])
        report = build_report(plan, {digest: manifest["score"] for digest, manifest in scores.items()}, refused)
        with store.scratch() as folder:
            for row in report["rows"]:
                member = plan.member(row["name"])
                artifacts = _artifacts(store, plan, member, scores, folder / row["digest"][:16])
                artifacts |= lambda_files(store, member, folder / row["digest"][:16])
                row["mlflow_run"] = track.log_member(parent, **_record(plan, member, row), artifacts=artifacts)
            track.log_files(parent, _pictures(report, folder) | importance_files(store, plan, folder))
        report["mlflow_run"] = parent
        report["mlflow_url"] = self.mlflow_url = track.run_url(experiment, parent)
        report["compare_url"] = track.compare_url(
            experiment, [row["mlflow_run"] for row in report["rows"] if row["kind"] == "candidate"]
        )
        links = f"[The run in Airflow]({airflow_url(context)}) · [Compare the candidates]({report['compare_url']})"
        track.describe(parent, f"{links}\n\n{_table(report)}")
        store.write_json(report_key(plan), report)
        track.finish(parent, "FINISHED")
        log.info("%d of %d candidates are on the front", *_count(report["rows"]))
        log.info("MLflow: %s", report["mlflow_url"])
        return store.uri(report_key(plan))


def _pictures(report: dict[str, Any], folder: Path) -> dict[str, Path]:
    """The front as page and picture, and the table, by the path they get in MLflow."""
    from evaluation.figures import front_html, front_png

    rows, objectives = report["rows"], report["objectives"]
    files = {name: folder / name for name in ("front.html", "front.png", "candidates.md")}
    files["front.html"].write_text(front_html(rows, objectives))
    front_png(rows, objectives, files["front.png"])
    files["candidates.md"].write_text(_table(report))
    return files


def _table(report: dict[str, Any]) -> str:
    """The report's table in Markdown, and under it what could not be made."""
    from evaluation.figures import table_markdown
    from evaluation.report import not_made_lines

    return "\n\n".join(
        [table_markdown(report["rows"], report["objectives"], report["length_reference"]), *not_made_lines(report)]
    )


def gather_scores(store: ObjectStore, plan: StudyPlan, without: Collection[str]) -> dict[str, dict[str, Any]]:
    """The manifest of every score of the plan, by digest, but for the candidates `without` a checkpoint."""
    found = {}
    for member in [*plan.models, *(one for one in plan.candidates if one.name not in without)]:
        for benchmark, digest in member.scores.items():
            manifest = store.manifest("scores", digest)
            if manifest is None:
                raise TransientError(f"{member.name} has no score on {benchmark} yet ({store.uri('scores', digest)})")
            found[digest] = manifest
    return found


def _record(plan: StudyPlan, member: PlannedModel | PlannedCandidate, row: dict[str, Any]) -> dict[str, Any]:
    """What a member's nested MLflow run shows: `name`, `metrics`, `params`, `tags`."""
    metrics = {"on_front": float(row["on_front"])}
    for benchmark, score in row["scores"].items():
        metrics[benchmark] = score["value"]
        metrics[f"{benchmark}_stderr"] = score["stderr"]
        metrics[f"{benchmark}_response_tokens"] = score["response_tokens"]
    metrics["hypervolume_gain"] = row["hypervolume_gain"]
    metrics["length_change"] = row["length_change"]
    return {
        "name": member.name,
        "metrics": {key: value for key, value in metrics.items() if value is not None},
        "params": _params(plan, member),
        "tags": {**_tags(member), "mergeflow.reused": str(row["reused"]).lower()},
    }


def _refusal(plan: StudyPlan, candidate: PlannedCandidate, reason: str) -> dict[str, Any]:
    """The nested MLflow run of a candidate that could not be made."""
    return {
        "name": candidate.name,
        "metrics": {},
        "params": _params(plan, candidate),
        "tags": {**_tags(candidate), "mergeflow.not_made": reason},
        "artifacts": {},
        "status": "FAILED",
    }


def _params(plan: StudyPlan, member: PlannedModel | PlannedCandidate) -> dict[str, str]:
    params = {"base": plan.study.base}
    if not isinstance(member, PlannedCandidate):
        return params | {"method": "none", "informed": "none", "source": member.reference}
    params |= {"method": member.method, "informed": member.informed, "combination": "+".join(member.combination)}
    params |= {key: str(value) for key, value in member.parameters.items()}
    # omega 1 is the identity; MLflow would draw a plain merge without omega above all others.
    params["omega"] = "1" if member.omega is None else str(member.omega)
    if member.t is not None:
        params["t"] = str(member.t)
    return params


def _tags(member: PlannedModel | PlannedCandidate) -> dict[str, str]:
    return {"mergeflow.kind": member.kind, "mergeflow.digest": member.digest}


def _artifacts(
    store: ObjectStore, plan: StudyPlan, member: Any, scores: dict[str, dict[str, Any]], folder: Path
) -> dict[str, Path]:
    """Recipe, scores and new samples of a member as local files, by the path they get in MLflow.

    Samples that an earlier run recorded stay where they are; `scores.json` has the address of all.
    """
    folder.mkdir()
    results, artifacts = {}, {}
    for benchmark, digest in member.scores.items():
        manifest = scores[digest]
        results[benchmark] = {"address": store.uri("scores", digest), **manifest["score"]}
        for name, file in manifest["files"].items() if digest in plan.missing else ():
            local = store.download(f"scores/{digest}/{name}", folder / f"{benchmark}.jsonl", file["sha256"])
            artifacts[f"samples/{benchmark}.jsonl"] = local
    artifacts["scores.json"] = folder / "scores.json"
    artifacts["scores.json"].write_text(json.dumps(results, indent=1))
    if isinstance(member, PlannedCandidate):
        artifacts["recipe.yaml"] = folder / "recipe.yaml"
        artifacts["recipe.yaml"].write_text(yaml.safe_dump(member.recipe, sort_keys=False))
    return artifacts


def _count(rows: list[dict[str, Any]]) -> tuple[int, int]:
    candidates = [row for row in rows if row["kind"] == "candidate"]
    return sum(row["on_front"] for row in candidates), len(candidates)
