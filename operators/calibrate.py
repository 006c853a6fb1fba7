"""Calibrate: activation statistics of the base model on the calibration texts, for AIM (arXiv 2502.02421)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluation.plan import StudyPlan
from operators.device import device
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep, sources

log = logging.getLogger(__name__)
STATISTICS = "statistics.safetensors"


class CalibrateOperator(StudyStep):
    """`member` is `base`, for AIM; or an expert, which ACM measures against the base."""

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> str:
        if self.member != "base":
            from operators.consensus import measure_consensus

            return measure_consensus(store, plan, self.member)
        wanted = plan.calibration
        if plan.force or store.manifest("calibrations", wanted.digest) is None:
            from merging.calibration import calibrate, token_blocks

            base = store.local("models", plan.model("base").digest)
            with store.scratch() as folder:
                (folder / "out").mkdir()
                chosen = token_blocks(texts_of(store, wanted.texts, folder), base, wanted.samples, wanted.block)
                if chosen.note:
                    log.warning(chosen.note)
                about = {"model": plan.model("base").digest, "samples": wanted.samples, "block": wanted.block}
                identity = {"calibration": wanted.digest, "model": plan.model("base").digest}
                calibrate(
                    base,
                    chosen.blocks,
                    folder / "out" / STATISTICS,
                    device=device(),
                    progress=log_lines(),
                    metadata=identity | chosen.about,
                )
                store.publish("calibrations", wanted.digest, folder / "out", about, force=plan.force)
        return store.uri("calibrations", wanted.digest)


def texts_of(store: ObjectStore, texts: dict[str, str], folder: Path) -> Iterable[str]:
    """The calibration texts of a plan; a file comes by way of `folder`."""
    if "dataset" in texts:
        from evaluation.texts import dataset_texts

        token = sources(store).hub.api.token
        return dataset_texts(texts["dataset"], texts["revision"], texts["split"], texts["field"], token)
    from merging.calibration import read_texts

    return read_texts(store.download(f"texts/{texts['sha256']}.jsonl", folder / "texts.jsonl", texts["sha256"]))
