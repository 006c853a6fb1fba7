"""Benchmark: score one model, input or candidate, on every benchmark it has no score for yet."""

from __future__ import annotations

import logging
from typing import Any

from evaluation.benchmark import Score
from evaluation.plan import StudyPlan
from operators.device import device
from operators.hooks.object_store import ObjectStore
from operators.progress import log_lines
from operators.step import StudyStep

log = logging.getLogger(__name__)


class BenchmarkOperator(StudyStep):
    def work(self, store: ObjectStore, plan: StudyPlan, context: Any) -> list[str]:
        member = plan.member(self.member)
        wanted = {
            name: digest
            for name, digest in member.scores.items()
            if plan.force or store.manifest("scores", digest) is None
        }
        if wanted:
            from evaluation.lm_eval_runner import run_benchmarks

            model = store.local("models", member.digest)
            benchmarks = [plan.study.benchmarks[name] for name in wanted]
            digests = iter(wanted.items())

            def scored(score: Score) -> None:
                name, digest = next(digests)
                log.info("%s: %.1f %% +- %.1f", name, 100 * score.value, 100 * (score.stderr or 0))
                _publish(store, digest, score, member.digest, force=plan.force)

            run_benchmarks(model, benchmarks, device=device(), progress=log_lines(), scored=scored)
        return [store.uri("scores", digest) for digest in member.scores.values()]


def _publish(store: ObjectStore, digest: str, score: Score, model: str, *, force: bool) -> None:
    """The score itself stands in the manifest; the samples' name carries their hash, so racing writers never mix."""
    from merging.digest import file_sha256

    with store.scratch() as folder:
        samples = folder / "samples.jsonl"
        score.write_samples(samples)
        samples.rename(folder / f"samples-{file_sha256(samples)[:16]}.jsonl")
        about = {"model": model, "score": score.model_dump(mode="json", exclude={"rows"})}
        store.publish("scores", digest, folder, about, force=force)
