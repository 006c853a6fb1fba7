"""Fetch: bring one input model into the bucket, pinned and verified."""

from __future__ import annotations

from typing import Any

from evaluation.plan import StudyPlan
from operators.hooks.object_store import ObjectStore
from operators.hooks.sources import ResolvedModel
from operators.progress import log_lines
from operators.step import StudyStep, sources


class FetchOperator(StudyStep):
    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> str:
        model = plan.model(self.member)
        if store.manifest("models", model.digest) is None:
            # Not a scratch folder: a retry goes on where the broken download ended.
            folder = store.cache / "fetching" / model.digest
            resolved = ResolvedModel.model_validate({k: v for k, v in model.resolved.items() if k != "reference"})
            sources(store).fetch(resolved, folder, log_lines())
            about = {"source": model.reference, "licence": resolved.licence}
            manifest = store.publish("models", model.digest, folder, about)
            store.keep("models", model.digest, folder, manifest)
        return store.uri("models", model.digest)
