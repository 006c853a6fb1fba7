"""A study with its models resolved: every candidate, calibration and score under the digest it will have.

The digests are known before anything is computed, so whoever runs the plan can tell what is already there.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from evaluation.study import Study


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


class PlannedConsensus(_Part):
    """What ACM needs: the base against an expert or a plain merge, by its name, on texts as for PlannedCalibration."""

    digest: str
    against: str
    texts: dict[str, str]
    samples: int
    longest: int | None


class PlannedCandidate(_Part):
    """A merge to make and measure; `scores` holds each benchmark's score digest.

    `consensus` holds the digests of what ACM needs, by what the recipe measures. `plain` names the plain merge that has
    to be there before.
    """

    name: str
    kind: Literal["candidate"] = "candidate"
    method: str
    parameters: dict[str, Any]
    combination: list[str]
    informed: str
    omega: float | None
    t: float | None = None
    recipe: dict[str, Any]
    digest: str
    scores: dict[str, str]
    consensus: dict[str, str] = {}
    plain: str | None = None


class StudyPlan(_Part):
    """One run of a study, fixed when it starts: later edits of the study file do not reach it.

    `stages` are plain merges that are no candidates, made for ACM to measure. `missing` holds the digests that the run
    has to make; the rest is there already.
    """

    study: Study
    run: str
    force: bool = False
    promote: bool = True
    models: list[PlannedModel]
    calibration: PlannedCalibration | None
    candidates: list[PlannedCandidate]
    stages: list[PlannedCandidate] = []
    consensus: list[PlannedConsensus] = []
    missing: frozenset[str] = frozenset()

    def to_fetch(self) -> list[str]:
        return [model.name for model in self.models if model.digest in self.missing]

    def to_calibrate(self) -> list[str]:
        """`base` for AIM's statistics, and the experts that ACM measures against it."""
        names = ["base"] if self.calibration and self.calibration.digest in self.missing else []
        experts = [model.name for model in self.models]
        return names + [one.against for one in self.consensus if one.against in experts and one.digest in self.missing]

    def to_compare(self, combination: str) -> list[str]:
        """Plain merges (of one combination) that ACM has yet to measure against the base."""
        merges = [one.name for one in [*self.candidates, *self.stages] if "+".join(one.combination) == combination]
        return [one.against for one in self.consensus if one.against in merges and one.digest in self.missing]

    def to_merge(self, combination: str, *, scaled: bool) -> list[str]:
        """Merges (of one combination) that lack their checkpoint: those that ACM scales after a plain merge was
        measured, or all others."""
        stages = [one for one in self.stages if one.name in self.to_compare(combination)]
        return [
            one.name
            for one in [*self.candidates, *stages]
            if "+".join(one.combination) == combination
            and one.digest in self.missing
            and (one.plain is not None) == scaled
        ]

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
            "calibrate": [one.digest for one in [self.calibration, *self.consensus] if one],
            "merge": [candidate.digest for candidate in self.candidates],
            "benchmark": scores,
        }
        return {step: sum(digest not in self.missing for digest in digests) for step, digests in steps.items()}

    def model(self, name: str) -> PlannedModel:
        return next(model for model in self.models if model.name == name)

    def member(self, name: str) -> PlannedModel | PlannedCandidate:
        """An input model or a candidate, by the name it has in the study."""
        return next(member for member in [*self.models, *self.candidates, *self.stages] if member.name == name)

    def consensus_of(self, name: str) -> PlannedConsensus:
        """What ACM needs of an expert or a plain merge."""
        return next(one for one in self.consensus if one.against == name)
