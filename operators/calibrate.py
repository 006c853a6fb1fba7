"""Calibrate: activation statistics of the base model on the calibration texts (arXiv 2502.02421)."""

from __future__ import annotations

from typing import Any

from evaluation.plan import StudyPlan
from operators.device import device
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep

STATISTICS = "statistics.safetensors"


class CalibrateOperator(StudyStep):
    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> str:
        wanted = plan.calibration
        if plan.force or store.manifest("calibrations", wanted.digest) is None:
            from merging.calibration import calibrate, read_texts, token_blocks

            base = store.local("models", plan.model("base").digest)
            with store.scratch() as folder:
                (folder / "out").mkdir()
                texts = store.download(
                    f"texts/{wanted.texts_sha256}.jsonl", folder / "texts.jsonl", wanted.texts_sha256
                )
                blocks = token_blocks(read_texts(texts), base, wanted.samples, wanted.block)
                about = {"model": plan.model("base").digest, "samples": wanted.samples, "block": wanted.block}
                metadata = {"calibration": wanted.digest, **{key: str(value) for key, value in about.items()}}
                calibrate(
                    base,
                    blocks,
                    folder / "out" / STATISTICS,
                    device=device(),
                    progress=log_lines(),
                    metadata=metadata,
                )
                store.publish("calibrations", wanted.digest, folder / "out", about, force=plan.force)
        return store.uri("calibrations", wanted.digest)
