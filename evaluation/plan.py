"""A study with its models resolved: every candidate, calibration and score under the digest it will have.

The digests are known before anything is computed, so whoever runs the plan can tell what is already there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from evaluation.benchmark import Benchmark, score_digest
from evaluation.candidates import expand
from evaluation.study import Study
from merging.digest import calibration_digest, json_digest
from merging.errors import InputError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlannedModel(_Part):
    """An input model: `reference` is its pinned name in recipes, `resolved` what fetching it needs."""

    name: str
    kind: Literal["base", "expert"]
    reference: str
    digest: str
    resolved: dict[str, Any]
    scores: dict[str, str]


class PlannedCalibration(_Part):
    """`texts` says what to calibrate on: {"sha256"} of a file in the bucket, or a pinned data set."""

    digest: str
    texts: dict[str, str]
    samples: int
    block: int


class PlannedCandidate(_Part):
    """A merge to make and measure; `scores` holds each benchmark's score digest."""

    name: str
    kind: Literal["candidate"] = "candidate"
    method: str
    parameters: dict[str, Any]
    combination: list[str]
    informed: str
    omega: float | None
    recipe: dict[str, Any]
    digest: str
    scores: dict[str, str]


class StudyPlan(_Part):
    """One run of a study, fixed when it starts: later edits of the study file do not reach it.

    `missing` holds the digests that the run has to make; the rest is there already.
    """

    study: Study
    run: str
    force: bool = False
    promote: bool = True
    models: list[PlannedModel]
    calibration: PlannedCalibration | None
    candidates: list[PlannedCandidate]
    missing: frozenset[str] = frozenset()

    def to_fetch(self) -> list[str]:
        return [model.name for model in self.models if model.digest in self.missing]

    def to_calibrate(self) -> list[str]:
        return ["base"] if self.calibration and self.calibration.digest in self.missing else []

    def to_measure(self) -> list[str]:
        """Input models that lack a score."""
        return [model.name for model in self.models if not self.missing.isdisjoint(model.scores.values())]

    def to_make(self, combination: str | None = None) -> list[str]:
        """Candidates (of one combination, "math+code") that lack their checkpoint or a score."""
        return [
            one.name
            for one in self.candidates
            if combination in (None, "+".join(one.combination))
            and not self.missing.isdisjoint({one.digest, *one.scores.values()})
        ]

    def reused(self) -> dict[str, int]:
        """How much of each step an earlier run has already done."""
        scores = [digest for member in [*self.models, *self.candidates] for digest in member.scores.values()]
        steps = {
            "fetch": [model.digest for model in self.models],
            "calibrate": [self.calibration.digest] if self.calibration else [],
            "merge": [candidate.digest for candidate in self.candidates],
            "benchmark": scores,
        }
        return {step: sum(digest not in self.missing for digest in digests) for step, digests in steps.items()}

    def model(self, name: str) -> PlannedModel:
        return next(model for model in self.models if model.name == name)

    def member(self, name: str) -> PlannedModel | PlannedCandidate:
        """An input model or a candidate, by the name it has in the study."""
        return next(member for member in [*self.models, *self.candidates] if member.name == name)


def plan_study(
    study: Study,
    run: str,
    resolved: Mapping[str, Mapping[str, Any]],
    *,
    texts: Mapping[str, str] | None = None,
    force: bool = False,
    promote: bool = True,
) -> StudyPlan:
    """Lay out one run of `study`.

    `resolved` gives for `base` and every expert at least {"digest", "reference"}; `texts` says what
    to calibrate on (see PlannedCalibration), where that is needed.
    """
    _refuse_copies(resolved)
    models = [
        PlannedModel(
            name=name,
            kind="base" if name == "base" else "expert",
            reference=found["reference"],
            digest=found["digest"],
            resolved=dict(found),
            scores=_scores(study.benchmarks, found["digest"]),
        )
        for name, found in resolved.items()
    ]
    calibration = None
    if study.needs_calibration and study.calibration and texts:
        given = study.calibration
        text_digest = texts.get("sha256") or json_digest(dict(texts))
        digest = calibration_digest(resolved["base"]["digest"], text_digest, given.samples, given.block)
        calibration = PlannedCalibration(digest=digest, texts=dict(texts), samples=given.samples, block=given.block)
    return StudyPlan(
        study=study,
        run=run,
        force=force,
        promote=promote,
        models=models,
        calibration=calibration,
        candidates=_candidates(study, models, calibration),
    )


def _refuse_copies(resolved: Mapping[str, Mapping[str, Any]]) -> None:
    first: dict[str, str] = {}
    for name, found in resolved.items():
        other = first.setdefault(found["digest"], name)
        if other != name:
            raise InputError(f"{name}: the same model as {other}, byte for byte; name another or leave one out")


def _candidates(
    study: Study, models: list[PlannedModel], calibration: PlannedCalibration | None
) -> list[PlannedCandidate]:
    digests = {model.reference: model.digest for model in models}
    planned = []
    for candidate in expand(study, {model.name: model.reference for model in models}):
        digest = candidate.recipe.digest(digests, calibration.digest if calibration and candidate.recipe.aim else None)
        planned.append(
            PlannedCandidate(
                name=candidate.name,
                method=candidate.method,
                parameters=dict(candidate.parameters),
                combination=list(candidate.combination),
                informed=candidate.informed,
                omega=candidate.omega,
                recipe=candidate.recipe.model_dump(mode="json", exclude_none=True),
                digest=digest,
                scores=_scores(study.benchmarks, digest),
            )
        )
    return planned


def _scores(benchmarks: Mapping[str, Benchmark], model_digest: str) -> dict[str, str]:
    return {name: score_digest(benchmark, model_digest) for name, benchmark in benchmarks.items()}
