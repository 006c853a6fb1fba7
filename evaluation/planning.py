"""Laying out one run of a study: every candidate, calibration and score under the digest it will have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evaluation.benchmark import Benchmark, score_digest
from evaluation.candidates import Candidate, expand, plain
from evaluation.plan import PlannedCalibration, PlannedCandidate, PlannedConsensus, PlannedModel, StudyPlan
from evaluation.study import Study
from merging.digest import calibration_digest, consensus_digest, json_digest
from merging.errors import InputError


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
    merges = Merges(study, models, texts)
    return StudyPlan(
        study=study,
        run=run,
        force=force,
        promote=promote,
        models=models,
        calibration=merges.calibration,
        candidates=merges.candidates,
        stages=merges.stages,
        consensus=list(merges.consensus.values()),
    )


class Merges:
    """The merges of a study and what they rest on.

    ACM measures a merge that its method makes plainly first: where that is no candidate itself, it is one of `stages`.
    """

    def __init__(self, study: Study, models: list[PlannedModel], texts: Mapping[str, str] | None):
        self.study, self.models, self.texts = study, {model.reference: model for model in models}, texts
        self.base = models[0].digest
        self.calibration = self._calibration()
        self.consensus: dict[str, PlannedConsensus] = {}
        candidates = expand(study, {model.name: model.reference for model in models})
        self.candidates = [self._planned(one, study.benchmarks) for one in candidates]
        plains = {one.name: one for one in map(plain, candidates)}
        there = {one.name for one in self.candidates}
        needed = dict.fromkeys(one.plain for one in self.candidates if one.plain and one.plain not in there)
        self.stages = [self._planned(plains[name], {}) for name in needed]

    def _text_digest(self) -> str:
        return self.texts.get("sha256") or json_digest(dict(self.texts))

    def _calibration(self) -> PlannedCalibration | None:
        given = self.study.calibration
        if not (self.study.needs_aim and given and self.texts):
            return None
        digest = calibration_digest(self.base, self._text_digest(), given.samples, given.block)
        return PlannedCalibration(digest=digest, texts=dict(self.texts), samples=given.samples, block=given.block)

    def _planned(self, candidate: Candidate, benchmarks: Mapping[str, Benchmark]) -> PlannedCandidate:
        recipe = candidate.recipe
        digests = {reference: model.digest for reference, model in self.models.items()}
        before = plain(candidate) if recipe.acm and not recipe.acm_by_expert else None
        measured = {}
        for one in recipe.measured:
            name = before.name if before else self.models[one].name
            against = before.recipe.digest(digests) if before else digests[one]
            measured[one] = self._consensus(name, against)
        calibration = self.calibration.digest if self.calibration and recipe.aim else None
        digest = recipe.digest(digests, calibration, measured)
        return PlannedCandidate(
            name=candidate.name,
            method=candidate.method,
            parameters=dict(candidate.parameters),
            combination=list(candidate.combination),
            informed=candidate.informed,
            omega=candidate.omega,
            t=candidate.t,
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            digest=digest,
            scores=_scores(benchmarks, digest),
            consensus=measured,
            plain=before.name if before else None,
        )

    def _consensus(self, name: str, against: str) -> str:
        """The digest of what the base has in common with a model, which is noted."""
        given, texts = self.study.calibration, dict(self.texts)
        digest = consensus_digest(self.base, against, self._text_digest(), given.samples, given.longest)
        self.consensus[digest] = PlannedConsensus(
            digest=digest, against=name, texts=texts, samples=given.samples, longest=given.longest
        )
        return digest


def _refuse_copies(resolved: Mapping[str, Mapping[str, Any]]) -> None:
    first: dict[str, str] = {}
    for name, found in resolved.items():
        other = first.setdefault(found["digest"], name)
        if other != name:
            raise InputError(f"{name}: the same model as {other}, byte for byte; name another or leave one out")


def _scores(benchmarks: Mapping[str, Benchmark], model_digest: str) -> dict[str, str]:
    return {name: score_digest(benchmark, model_digest) for name, benchmark in benchmarks.items()}
