"""Slow is right and long, fast is wrong more often and brief, and what lies between them can be had by merging."""

import json
import random

import pytest
import torch

from evaluation.benchmark import Benchmark
from infra.demo.family import load
from infra.demo.pair import FOLDER, MAX_RESPONSE_TOKENS, MEMBERS, score
from infra.demo.questions import BENCHMARK_SUMS, benchmark_sums
from infra.demo.sums import LARGEST, Sum
from infra.demo.tokenizer import build_tokenizer

RECORD = json.loads((FOLDER / "training.json").read_text())["members"]
SUBSET = 60  # questions; the standard error of a score is at most 0.065


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("benchmark", BENCHMARK_SUMS)
@pytest.mark.parametrize("name", MEMBERS)
def test_a_model_has_the_recorded_accuracy_and_length(name, benchmark):
    found = score(*load(name, FOLDER), benchmark_sums(benchmark)[:SUBSET])
    recorded = RECORD[name]["scores"][benchmark]
    assert found["accuracy"] == pytest.approx(recorded["accuracy"], abs=0.2)
    assert found["response_tokens"] == pytest.approx(recorded["response_tokens"], rel=0.25)


@pytest.mark.parametrize("benchmark", BENCHMARK_SUMS)
def test_slow_is_right_and_long_and_fast_is_brief(benchmark):
    slow, fast = (RECORD[name]["scores"][benchmark] for name in ("slow", "fast"))
    assert slow["accuracy"] >= 0.9
    assert 0.3 <= fast["accuracy"] <= slow["accuracy"] - 0.3
    assert fast["response_tokens"] <= 0.3 * slow["response_tokens"]


def test_adding_half_of_both_deltas_gives_a_model_between_the_two():
    base, tokenizer = load("base", FOLDER)
    questions = benchmark_sums("long_sums")[:SUBSET]
    slow, fast = (load(name, FOLDER)[0].state_dict() for name in ("slow", "fast"))
    ends = [RECORD[name]["scores"]["long_sums"] for name in ("fast", "slow")]
    base.load_state_dict({k: b + 0.5 * (slow[k] - b) + 0.5 * (fast[k] - b) for k, b in base.state_dict().items()})
    merged = score(base, tokenizer, questions)
    for measure in ("accuracy", "response_tokens"):
        low, high = (end[measure] for end in ends)
        assert low < merged[measure] < high, merged


def test_the_task_reads_the_answer_after_the_steps_and_counts_all_tokens():
    from evaluation.harness import load_model, score_benchmark

    found = score_benchmark(load_model(FOLDER / "base", "cpu"), Benchmark(task="tiny_sums", limit=40, batch_size=40))
    right = [row["response"].split("=")[-1] == row["target"] for row in found.rows]
    stepwise = ["=" in row["response"] for row in found.rows]
    assert {*zip(stepwise, right, strict=True)} >= {(True, True), (False, True), (False, False)}
    assert [row["correct"] == 1 for row in found.rows] == right
    assert found.value == pytest.approx(sum(right) / 40)
    assert found.response_tokens == pytest.approx(sum(len(row["response"]) for row in found.rows) / 40)


def test_the_longest_response_fits():
    longest = Sum((LARGEST,) * max(BENCHMARK_SUMS.values())).worked(0, random.Random(0))
    assert len(build_tokenizer()(longest.answer, add_special_tokens=False).input_ids) < MAX_RESPONSE_TOKENS
