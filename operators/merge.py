"""Merge: make one candidate's checkpoint from its recipe."""

from __future__ import annotations

from typing import Any

from evaluation.plan import StudyPlan
from operators.calibrate import STATISTICS
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep


class MergeOperator(StudyStep):
    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> str:
        candidate = plan.member(self.member)
        if plan.force or store.manifest("models", candidate.digest) is None:
            from merging.engine import merge
            from merging.recipe import Recipe

            recipe = Recipe.parse(candidate.recipe)
            by_reference = {model.reference: model.digest for model in plan.models}
            models = {name: store.local("models", by_reference[name]) for name in recipe.inputs}
            statistics = None
            if recipe.aim:
                statistics = store.local("calibrations", plan.calibration.digest) / STATISTICS
            with store.scratch() as folder:
                metadata = {"name": candidate.name, "study": plan.study.name, "recipe_digest": candidate.digest}
                report = merge(
                    recipe,
                    folder / "out",
                    models=models,
                    digests=by_reference,
                    statistics=statistics,
                    progress=log_lines(),
                    metadata=metadata,
                )
                about = {
                    "recipe": candidate.recipe,
                    "inputs": {name: by_reference[name] for name in recipe.inputs},
                    "calibration": plan.calibration.digest if recipe.aim else None,
                    "delta_norms": report["delta_norms"],
                }
                manifest = store.publish("models", candidate.digest, folder / "out", about, force=plan.force)
                store.keep("models", candidate.digest, folder / "out", manifest)
        return store.uri("models", candidate.digest)
