"""Calibrate: activation statistics of the base model on the calibration texts, for AIM (arXiv 2502.02421)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluation.plan import StudyPlan
from merging.errors import InputError
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
            with workplace(store, wanted.digest) as folder:
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


@contextmanager
def workplace(store: ObjectStore, digest: str) -> Iterator[Path]:
    """Where this worker makes statistics, in `out`: the same folder for every try, to go on with what a killed one did.

    Gone once what is made is published, or cannot be made at all.
    """
    folder = store.cache / "calibrating" / digest
    (folder / "out").mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    except InputError:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def texts_of(store: ObjectStore, texts: dict[str, str], folder: Path) -> Iterable[str]:
    """The calibration texts of a plan; a file comes by way of `folder`."""
    if "dataset" in texts:
        from evaluation.texts import dataset_texts

        token = sources(store).hub.api.token
        return dataset_texts(texts["dataset"], texts["revision"], texts["split"], texts["field"], token)
    from merging.calibration import read_texts

    return read_texts(store.download(f"texts/{texts['sha256']}.jsonl", folder / "texts.jsonl", texts["sha256"]))
