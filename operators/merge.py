"""Merge: make the checkpoints of all candidates of one combination of experts, reading their shared inputs once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.plan import PlannedCandidate, StudyPlan
from merging.errors import InputError
from operators.calibrate import STATISTICS
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep


class MergeOperator(StudyStep):
    """`member` is the combination ("math+code"). Returns the names of its candidates that lack a score."""

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> list[str]:
        todo = plan.to_make(self.member)
        wanted = [plan.member(name) for name in todo]
        wanted = [one for one in wanted if plan.force or store.manifest("models", one.digest) is None]
        if wanted:
            with store.scratch() as folder:
                _merge_and_publish(store, plan, wanted, folder)
        return todo


def _merge_and_publish(store: ObjectStore, plan: StudyPlan, wanted: list[PlannedCandidate], folder: Path) -> None:
    from merging.engine import merge_many
    from merging.recipe import Recipe

    recipes = [Recipe.parse(one.recipe) for one in wanted]
    outs = [folder / one.digest for one in wanted]
    digests = {model.reference: model.digest for model in plan.models}
    names = {name for recipe in recipes for name in recipe.inputs}
    statistics = None
    if any(recipe.aim for recipe in recipes):
        statistics = store.local("calibrations", plan.calibration.digest) / STATISTICS
    models = {name: store.local("models", digests[name]) for name in names}
    metadata = [{"name": one.name, "study": plan.study.name, "recipe digest": one.digest} for one in wanted]
    with named_models(models):
        reports = merge_many(
            recipes,
            outs,
            models=models,
            digests=digests,
            statistics=statistics,
            progress=log_lines(),
            metadata=metadata,
        )
    for candidate, recipe, out, report in zip(wanted, recipes, outs, reports, strict=True):
        about = {
            "recipe": candidate.recipe,
            "inputs": {name: digests[name] for name in recipe.inputs},
            "calibration": plan.calibration.digest if recipe.aim else None,
            "delta_norms": report["delta_norms"],
        }
        manifest = store.publish("models", candidate.digest, out, about, force=plan.force)
        store.keep("models", candidate.digest, out, manifest)


@contextmanager
def named_models(models: Mapping[str, Path]) -> Iterator[None]:
    """Let errors within speak of models by the study's names for them, not by folders of the worker's cache."""
    try:
        yield
    except InputError as error:
        problems = error.problems
        for name, folder in models.items():
            problems = [problem.replace(str(folder), name) for problem in problems]
        raise InputError(problems) from None
