"""A benchmark as a study names it, and the score it gives a model. Imports neither lm-eval nor torch."""

from __future__ import annotations

import difflib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from evaluation.catalogue import data_files, known_tasks, lm_eval_tasks, read_task, task_file
from merging.digest import file_sha256, json_digest

SCORER_VERSION = 1
"""Part of every score's digest: raise it when the same responses would be scored otherwise."""


class Benchmark(BaseModel):
    """One lm-eval task (ours or its own) and how to run it.

    `limit` takes the first questions only. `seed` draws the few-shot examples; generation is greedy unless the task's
    own settings say otherwise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    fewshot: int = Field(0, ge=0)
    limit: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)


class Score(BaseModel):
    """What a benchmark found for one model.

    `value` is the task's first metric with its first filter, between 0 and 1; `stderr` its standard error (None for a
    single question). `response_tokens` is the mean length of the raw generation in the model's own tokens, None
    where nothing is generated. `rows` holds one dict per question and is written apart, by `write_samples`.
    """

    task: str
    metric: str
    value: float = Field(ge=0, le=1)
    stderr: float | None
    samples: int
    response_tokens: float | None
    seconds: float
    rows: list[dict[str, Any]] = Field([], exclude=True, repr=False)

    def write_samples(self, path: str | Path) -> None:
        """One JSON line per question: task, question (number), prompt, target, response, correct, response_tokens."""
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def check_benchmark(benchmark: Benchmark) -> list[str]:
    """What keeps this benchmark from running, one line each; [] if nothing does."""
    path = task_file(benchmark.task)
    if path is None:
        return [_unknown(benchmark.task)]
    settings, _ = read_task(path)
    problems = []
    if settings.get("unsafe_code"):
        problems.append(f"task {benchmark.task} runs the code that the model writes, which is not possible here yet")
    if benchmark.fewshot and settings.get("num_fewshot") == 0:
        problems.append(
            f"task {benchmark.task} is defined with no examples: fewshot must be 0, found {benchmark.fewshot}"
        )
    missing = [file for files in data_files(settings, path.parent).values() for file in files if not file.is_file()]
    return problems + [f"task {benchmark.task} ({path.name}): there is no data file {file}" for file in missing]


def generates(task: str) -> bool:
    """Whether a task's answers are generated text; True where the task file does not say."""
    path = task_file(task)
    settings = read_task(path)[0] if path else {}
    return settings.get("output_type", "generate_until") == "generate_until"


def _unknown(task: str) -> str:
    own = list(known_tasks())
    near = difflib.get_close_matches(task, [*own, *lm_eval_tasks()], n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown task {task!r}; {hint}valid: {', '.join(own)}, and all that `lm-eval ls tasks` lists"


def score_digest(benchmark: Benchmark, model_digest: str) -> str:
    """The identity of a score (sha256 hex): equal digests mean the same questions put and judged in the same way.

    Covers the model, all settings, the bytes of the task's files and local data, and the versions of lm-eval and
    of this scorer. Where the files lie does not enter. A data set on the hub enters by its name alone.
    """
    path = task_file(benchmark.task)
    if path is None:
        raise ValueError(_unknown(benchmark.task))
    _, files = read_task(path)
    return json_digest(
        {
            "model": model_digest,
            "benchmark": benchmark.model_dump(),
            "files": {os.path.relpath(file, path.parent): file_sha256(file) for file in files},
            "lm_eval": version("lm_eval"),
            "scorer": SCORER_VERSION,
        }
    )
