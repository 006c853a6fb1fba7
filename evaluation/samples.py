"""What a model answered, question by question, in lines that a person can read and a program can score again."""

from __future__ import annotations

from statistics import fmean
from typing import Any


def sample_rows(
    tasks: dict[str, Any], samples: dict[str, list[dict[str, Any]]], metric: str, filter_name: str, tokenizer: Any
) -> list[dict[str, Any]]:
    """lm-eval's logged samples as rows, in the order of the tasks and their questions.

    `correct` is the question's own value of `metric`. `response_tokens` counts the raw generation, before any filter,
    with the model's `tokenizer` and without special tokens; None where the model only weighs given continuations.
    """
    return [
        _row(tasks[name], sample, metric, tokenizer)
        for name in tasks
        for sample in samples[name]
        if sample["filter"] == filter_name
    ]


def _row(task: Any, sample: dict[str, Any], metric: str, tokenizer: Any) -> dict[str, Any]:
    row = {"task": task.task_name, "question": sample["doc_id"], "prompt": sample["arguments"][0][0]}
    if task.OUTPUT_TYPE == "generate_until":
        generations = sample["resps"][0]
        tokens = tokenizer(generations, add_special_tokens=False).input_ids
        row |= {"target": sample["target"], "response": generations[0], "response_tokens": fmean(map(len, tokens))}
    else:
        row |= {**_choice(sample), "response_tokens": None}
    return row | {"correct": _number(sample[metric])}


def _choice(sample: dict[str, Any]) -> dict[str, Any]:
    """The continuation that the model finds likeliest, beside the right one."""
    continuations = [arguments[1] for arguments in sample["arguments"] if len(arguments) > 1]
    if len(continuations) < 2:
        return {"target": sample["target"], "response": sample["filtered_resps"]}
    likelihoods = [response[0] for response in sample["filtered_resps"]]
    target = sample["target"]
    known = isinstance(target, int) and 0 <= target < len(continuations)
    return {
        "target": continuations[target] if known else target,
        "response": continuations[likelihoods.index(max(likelihoods))],
    }


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def mean_response_tokens(rows: list[dict[str, Any]]) -> float | None:
    """Mean length of the responses in tokens; None where nothing was generated."""
    counts = [row["response_tokens"] for row in rows if row["response_tokens"] is not None]
    return fmean(counts) if counts else None
