"""Consensus: how much the base and another model have in common, for ACM (arXiv 2505.14009)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from evaluation.plan import PlannedCandidate, StudyPlan
from operators.calibrate import texts_of, workplace
from operators.device import device
from operators.hooks.object_store import ObjectStore
from operators.merge import not_made
from operators.progress import log_lines
from operators.step import StudyStep

log = logging.getLogger(__name__)
CONSENSUS = "consensus.safetensors"


class ConsensusOperator(StudyStep):
    """`member` is a combination ("math+code"): its plain merges that ACM has yet to measure against the base."""

    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> None:
        refused = not_made(store, plan)
        for name in plan.to_compare(self.member):
            if name not in refused:
                measure_consensus(store, plan, name)


def measure_consensus(store: ObjectStore, plan: StudyPlan, name: str) -> str:
    """Measure the base against an expert or a plain merge, unless that is done. The address of what was found."""
    wanted = plan.consensus_of(name)
    if plan.force or store.manifest("calibrations", wanted.digest) is None:
        from merging.acm import length_statistics, length_warnings
        from merging.consensus import measure, text_samples

        base, against = (plan.member(one).digest for one in ("base", name))
        folders = [store.local("models", digest) for digest in (base, against)]
        with workplace(store, wanted.digest) as folder:
            texts = texts_of(store, wanted.texts, folder)
            samples = text_samples(texts, folders[0], wanted.samples, wanted.longest)
            log.info("consensus of base and %s on %d samples", name, len(samples))
            found = measure(
                *folders,
                samples,
                folder / "out" / CONSENSUS,
                device=device(),
                progress=log_lines(),
                digests=(base, against),
                metadata={"consensus": wanted.digest},
            )
            about = {"base": base, "against": against, "lengths": length_statistics(found.lengths)}
            for warning in length_warnings(found.lengths):
                log.warning(warning)
            store.publish("calibrations", wanted.digest, folder / "out", about, force=plan.force)
    return store.uri("calibrations", wanted.digest)


def consensus_files(store: ObjectStore, candidate: PlannedCandidate) -> dict[str, Path] | None:
    """The files ACM needs for a candidate, by what its recipe measures; None where it is not made by ACM."""
    digests = candidate.consensus.items()
    return {one: store.local("calibrations", digest) / CONSENSUS for one, digest in digests} or None
