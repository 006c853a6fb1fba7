"""Runs benchmarks on a model. Cheap to import: lm-eval, torch and transformers come in with the first run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from evaluation.benchmark import Benchmark, Score, check_benchmark
from merging.errors import InputError

__all__ = ["Score", "run_benchmarks"]

Progress = Callable[[int, int, str], None]


def run_benchmarks(
    model_dir: str | Path,
    benchmarks: list[Benchmark],
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    scored: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Score the model in `model_dir` on each benchmark, in their order; the model is loaded once.

    `progress(done, total, task)` is called some twenty times per task, with the requests done and all of them. A
    local task makes no network call and leaves nothing on disk; lm-eval's own tasks load their data sets as lm-eval
    does, through the hub's cache. `scored(score)` is called after each benchmark.
    Raises InputError for what the user must change (all benchmarks are checked before the model is read).
    """
    problems = [problem for benchmark in benchmarks for problem in check_benchmark(benchmark)]
    if problems:
        raise InputError(problems)
    with _collector_paused():
        from evaluation.harness import load_model, quiet_libraries, score_benchmark

        with quiet_libraries():
            model = load_model(Path(model_dir), device)
    with quiet_libraries():
        scores = []
        for benchmark in benchmarks:
            scores.append(score_benchmark(model, benchmark, progress))
            if scored:
                scored(scores[-1])
        return scores


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Imports allocate millions of objects that stay: collecting garbage meanwhile costs a sixth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
