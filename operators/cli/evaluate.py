"""`mergeflow evaluate`: benchmark a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merging.errors import InputError
from operators.device import device
from operators.progress import bar


def evaluate(
    model: Annotated[Path, typer.Argument(help="a local model folder")],
    task: Annotated[list[str], typer.Option(help="a task of lm-eval or of evaluation/tasks; may be given again")],
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many questions")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    samples: Annotated[Path | None, typer.Option(help="folder for the answers to every question (JSONL)")] = None,
) -> None:
    """Benchmark a model with lm-eval."""
    from evaluation.benchmark import Benchmark, check_benchmark

    benchmarks = [Benchmark(task=name, limit=limit, batch_size=batch_size) for name in task]
    problems = [problem for one in benchmarks for problem in check_benchmark(one)]
    if problems:
        raise InputError(problems)
    if samples:
        samples.mkdir(parents=True, exist_ok=True)
    from evaluation.lm_eval_runner import run_benchmarks

    with bar() as progress:
        scores = run_benchmarks(model, benchmarks, device=device(), progress=progress)
    for score in scores:
        error = f" +- {100 * score.stderr:.1f}" if score.stderr is not None else ""
        length = f", {score.response_tokens:.1f} tokens per answer" if score.response_tokens is not None else ""
        print(f"{score.task}: {100 * score.value:.1f} %{error} ({score.metric}, {score.samples} questions{length})")
        if samples:
            score.write_samples(samples / f"{score.task}.jsonl")
