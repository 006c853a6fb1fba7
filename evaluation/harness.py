"""lm-eval at work: a model folder becomes its language model, a benchmark its tasks, and its results a Score.

Importing this module takes seconds (lm-eval, torch, transformers): use it through `evaluation.lm_eval_runner`.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lm_eval.api.task
import numpy as np
import torch
from datasets import Dataset
from lm_eval.api.model import LM, CacheHook
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from evaluation.benchmark import Benchmark, Score
from evaluation.catalogue import data_files, task_file
from evaluation.samples import mean_response_tokens, sample_rows
from merging.errors import InputError

BOOTSTRAP_ITERATIONS = 1000
"""For the few metrics without a closed form of their standard error; a mean's is analytic."""

REPORTS_PER_TASK = 20

Progress = Callable[[int, int, str], None]


class _Counter(CacheHook):
    """lm-eval tells its cache of every finished request: a place to count them."""

    def __init__(self, progress: Progress, task: str):
        self.progress, self.task, self.done, self.total = progress, task, 0, 0

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.done += 1
        if self.done == self.total or self.done % max(1, self.total // REPORTS_PER_TASK) == 0:
            self.progress(self.done, self.total, self.task)


class LanguageModel(HFLM):
    """HFLM that reports progress through its cache hook, instead of by bars."""

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        return super().generate_until(self._counted(requests), disable_tqdm=True)

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(self._counted(requests), disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list[float]:
        return super().loglikelihood_rolling(self._counted(requests), disable_tqdm=True)

    def _counted(self, requests: list) -> list:
        if isinstance(self.cache_hook, _Counter):
            self.cache_hook.total += len(requests)
        return requests


def load_model(folder: Path, device: str) -> LanguageModel:
    """The model and tokenizer of a local Hugging Face folder (safetensors only, in the checkpoint's own dtype)."""
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: there is no model here (no config.json)")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot be loaded: {' '.join(str(error).split())}") from error
    # transformers fills these with random numbers and goes on.
    if loading["missing_keys"]:
        raise InputError(f"{folder}: weights are missing: {', '.join(sorted(loading['missing_keys']))}")
    return LanguageModel(pretrained=model.to(device), tokenizer=tokenizer)


def score_benchmark(model: LM, benchmark: Benchmark, progress: Progress | None = None) -> Score:
    """Put the benchmark's questions to any lm-eval model that has a `tokenizer`, and score its responses."""
    started = time.monotonic()
    loaded = _load_tasks(benchmark)
    _seed(benchmark.seed)
    model.batch_size_per_gpu = benchmark.batch_size
    if progress:
        model.set_cache_hook(_Counter(progress, benchmark.task))
    try:
        with _truncation_told():
            results = evaluate(model, loaded, limit=benchmark.limit, bootstrap_iters=BOOTSTRAP_ITERATIONS)
    except AssertionError as error:
        # HFLM's words where the model's context is too short for the response that the task allows.
        if not str(error).startswith("Invalid configuration"):
            raise
        raise InputError(f"task {benchmark.task}: {error}") from None
    finally:
        model.set_cache_hook(CacheHook(None))
    metric, value, stderr = _first_metric(benchmark.task, results)
    rows = sample_rows(loaded["tasks"], results["samples"], *metric.split(","), model.tokenizer)
    return Score(
        task=benchmark.task,
        metric=metric,
        value=value,
        stderr=stderr,
        samples=len(rows),
        response_tokens=mean_response_tokens(rows),
        seconds=time.monotonic() - started,
        rows=rows,
    )


def _load_tasks(benchmark: Benchmark) -> dict[str, Any]:
    """lm-eval's tasks and groups for this benchmark, with its few-shot setting."""
    path = task_file(benchmark.task)
    settings = load_yaml(path)
    if "group" in settings:
        loaded = TaskManager().load([benchmark.task])
    else:
        # By its settings, because lm-eval's index of all its tasks takes 5 s to build.
        loaded = TaskManager(include_defaults=False).load([_with_local_questions(settings, path.parent)])
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise InputError(f"task {name} runs the code that the model writes, which is not possible here yet")
        if task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", benchmark.fewshot)
        task.set_fewshot_seed(benchmark.seed)
    return loaded


def _with_local_questions(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Read a task's own JSON lines ourselves: `datasets` would copy them to a cache and call its maker's server."""
    files = data_files(settings, folder)
    if settings.get("dataset_path") != "json" or not files:
        return settings

    def questions(**_: Any) -> dict[str, Dataset]:
        return {
            split: Dataset.from_list([row for path in paths for row in _json_lines(path)])
            for split, paths in files.items()
        }

    return {**settings, "custom_dataset": questions, "dataset_kwargs": None}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number}: not JSON: {error}") from None


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _first_metric(task: str, results: dict[str, Any]) -> tuple[str, float, float | None]:
    """The name (`metric,filter`), value and standard error of the first metric that the task or group declares."""
    found = results["results"].get(task, {})
    name = next((key for key in found if "," in key and "_stderr," not in key), None)
    if name is None:
        parts = ", ".join(results["group_subtasks"].get(task, []))
        raise InputError(f"task {task} is a group without a score of its own; name one of its tasks: {parts}")
    if not 0 <= found[name] <= 1:
        raise InputError(
            f"task {task}: its metric {name} is {found[name]:g}; only scores between 0 and 1 can be compared"
        )
    stderr = found.get(name.replace(",", "_stderr,"))
    return name, float(found[name]), None if stderr in (None, "N/A") else float(stderr)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no banners: a task's log is read by people."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    bar = lm_eval.api.task.tqdm
    log = logging.getLogger("lm_eval")
    level = log.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    lm_eval.api.task.tqdm = lambda iterable, **_: iterable
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        lm_eval.api.task.tqdm = bar
        log.setLevel(level)


@contextmanager
def _truncation_told() -> Iterator[None]:
    """HFLM cuts prompts that do not fit the context and warns for every batch: once is enough, never is too little."""
    log = logging.getLogger(HFLM.__module__)
    seen: set[int] = set()

    def first_of_its_line(record: logging.LogRecord) -> bool:
        return record.lineno not in seen and not seen.add(record.lineno)

    log.setLevel(logging.WARNING)
    log.addFilter(first_of_its_line)
    try:
        yield
    finally:
        log.removeFilter(first_of_its_line)
        log.setLevel(logging.NOTSET)
