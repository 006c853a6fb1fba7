"""The result of a run: one row per model measured, the front, who may be promoted, and who is champion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.length import length_change
from evaluation.pareto import front, hypervolume_gain, unit_scores
from evaluation.plan import PlannedModel, StudyPlan
from evaluation.study import Study
from evaluation.study_checks import REQUIREMENT, RESPONSE_TOKENS

Row = dict[str, Any]


def build_report(
    plan: StudyPlan, scores: Mapping[str, Mapping[str, Any]], not_made: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Rows, front and ranking of a run.

    `scores` holds by score digest {"value": in [0, 1], "stderr": likewise, "response_tokens": mean or None}. `not_made`
    names the candidates that could not be made, each with the reason; they have no row.
    """
    not_made = dict(not_made or {})
    members = [*plan.models, *(one for one in plan.candidates if one.name not in not_made)]
    rows = [_row(member, scores, plan.missing) for member in members]
    objectives = [{"name": name, "goal": goal} for name, goal in plan.study.objectives.items()]
    _mark_front(rows, plan.study)
    _measure_gain(rows, plan.study)
    reference = _measure_length(rows, plan.study)
    for row in rows:
        row["unmet"] = unmet_requirements(row, rows, plan.study) if row["kind"] == "candidate" else []
    return {
        "study": plan.study.name,
        "run": plan.run,
        "objectives": objectives,
        "length_reference": reference,
        "rows": rows,
        "ranking": [row["name"] for row in rank(rows)],
        "not_made": not_made,
        "reused": plan.reused(),
        "model": plan.study.promotion.model if plan.study.promotion else None,
        "champion": None,
        "challenger": None,
    }


def not_made_lines(report: Mapping[str, Any]) -> list[str]:
    """What stands under a report's table: the candidates that could not be made, and why."""
    return [f"not made: {name}: {reason}" for name, reason in report["not_made"].items()]


def rank(rows: Sequence[Row]) -> list[Row]:
    """The candidates on the front that meet every requirement, best first: by hypervolume gain, then by digest."""
    eligible = [row for row in rows if row["kind"] == "candidate" and row["on_front"] and not row["unmet"]]
    return sorted(eligible, key=lambda row: (-row["hypervolume_gain"], row["digest"]))


def unmet_requirements(row: Row, rows: Sequence[Row], study: Study) -> list[str]:
    """The study's requirements that `row` does not meet, each with what was measured, in points (percent)."""
    unmet = []
    for text in study.promotion.require if study.promotion else []:
        match = REQUIREMENT.match(text)
        reference, found = match["reference"], _points(row, match["objective"])
        bound = (
            next(_points(one, match["objective"]) for one in rows if one["name"] == reference)
            if reference in study.sources
            else float(reference)
        )
        bound += float((match["shift"] or "0").replace(" ", ""))
        if not (found >= bound if match["sign"] == ">=" else found <= bound):
            unmet.append(f"{text} (found {found:.1f}, needs {match['sign']} {bound:.1f})")
    return unmet


def _row(member: Any, scores: Mapping[str, Mapping[str, Any]], missing: frozenset[str]) -> Row:
    row: Row = {"name": member.name, "kind": member.kind, "digest": member.digest}
    if not isinstance(member, PlannedModel):
        row |= {
            "method": member.method,
            "parameters": member.parameters,
            "combination": member.combination,
            "informed": member.informed,
            "omega": member.omega,
            "t": member.t,
        }
    row["scores"] = {benchmark: dict(scores[digest]) for benchmark, digest in member.scores.items()}
    row["reused"] = missing.isdisjoint({member.digest, *member.scores.values()})
    return row | {"version": None, "mlflow_run": None}


def _value(row: Row, objective: str) -> float:
    """What an objective measures: a benchmark's score in [0, 1], or its mean response length in tokens."""
    benchmark, _, measure = objective.partition(".")
    return row["scores"][benchmark][RESPONSE_TOKENS if measure else "value"]


def _points(row: Row, objective: str) -> float:
    return _value(row, objective) * (1 if "." in objective else 100)


def _mark_front(rows: list[Row], study: Study) -> None:
    for row, on_front in zip(rows, front(_table(rows, study), _maximise(study)), strict=True):
        row["on_front"] = bool(on_front)


def _measure_gain(rows: list[Row], study: Study) -> None:
    """Hypervolume gain of each candidate over base and experts (arXiv 2502.02421).

    What is to be minimised counts against the worst of base and experts.
    """
    population = [row for row in rows if row["kind"] != "candidate"]
    worst = [max(column) or 1.0 for column in zip(*_table(population, study), strict=True)]
    scores = unit_scores(_table(rows, study), _maximise(study), worst)
    inputs = [score for row, score in zip(rows, scores, strict=True) if row["kind"] != "candidate"]
    for row, score in zip(rows, scores, strict=True):
        row["hypervolume_gain"] = hypervolume_gain(score, inputs) if row["kind"] == "candidate" else None


def _table(rows: Sequence[Row], study: Study) -> list[list[float]]:
    return [[_value(row, name) for name in study.objectives] for row in rows]


def _maximise(study: Study) -> list[bool]:
    return [goal == "maximise" for goal in study.objectives.values()]


def _measure_length(rows: list[Row], study: Study) -> str | None:
    """Length change of every row against the study's reference, by default the expert that answers at most length.

    Returns the reference's name; None where no objective is a length, or the reference answers nothing.
    """
    measured = [objective for objective in study.objectives if "." in objective]
    lengths = {row["name"]: [_value(row, objective) for objective in measured] for row in rows}
    reference = study.length_reference or max(study.experts, key=lambda name: sum(lengths[name]))
    if not measured or not all(lengths[reference]):
        reference = None
    for row in rows:
        row["length_change"] = reference and length_change(lengths[row["name"]], lengths[reference])
    return reference
