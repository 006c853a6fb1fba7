"""lm-eval's own tasks and groups, on a few questions in their data sets' form and a model that has learnt its part."""

import math

import pytest

from evaluation.benchmark import Benchmark
from merging.errors import InputError


class Words:
    """A tokenizer of words."""

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
        return type("Encoding", (), {"input_ids": [text.split() for text in texts]})


@pytest.fixture
def parrot():
    """A language model that gives these answers in turn."""
    from lm_eval.api.model import LM

    class Parrot(LM):
        tokenizer = Words()

        def __init__(self, answers):
            super().__init__()
            self.answers = answers

        def generate_until(self, requests):
            return [self.answers[place % len(self.answers)] for place in range(len(requests))]

        def loglikelihood(self, requests):
            return [(0.0, False) for _ in requests]

        def loglikelihood_rolling(self, requests):
            return [-1.0 for _ in requests]

    return Parrot


@pytest.fixture
def data_set(monkeypatch):
    """Stands in for the hub's data sets."""

    def give(*rows):
        from datasets import Dataset, DatasetDict

        splits = DatasetDict({split: Dataset.from_list(list(rows)) for split in ("train", "validation", "test")})
        monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: splits)

    return give


def test_a_task_with_several_filters_is_scored_by_its_first(data_set, parrot):
    from evaluation.harness import score_benchmark

    data_set(*({"question": f"what is {n}?", "answer": f"it is {n}\n#### {n}"} for n in range(4)))
    answers = ["so #### 0", "so it is 1", "#### 2", "#### 4"]
    score = score_benchmark(parrot(answers), Benchmark(task="gsm8k"))
    # The second answer would pass the lenient filter alone.
    assert (score.metric, score.value, score.samples) == ("exact_match,strict-match", 0.5, 4)
    assert [row["correct"] for row in score.rows] == [1, 0, 1, 0]
    assert [row["response_tokens"] for row in score.rows] == [3, 4, 2, 2]
    assert score.response_tokens == 11 / 4


def test_a_group_is_scored_as_a_whole(data_set, parrot):
    from evaluation.harness import score_benchmark

    data_set(
        *({"problem": f"{n}?", "solution": f"\\boxed{{{n}}}", "level": "Level 1", "type": "Algebra"} for n in "123")
    )
    score = score_benchmark(parrot(["$1$", "$2$", "$9$"]), Benchmark(task="hendrycks_math", limit=3))
    p, n = 2 / 3, 7 * 3
    assert (score.metric, score.value, score.samples) == ("exact_match,none", pytest.approx(p), n)
    # Seven parts of three questions each, their variances pooled.
    assert score.stderr == pytest.approx(math.sqrt(p * (1 - p) * 3 / 2 / n))
    assert len({row["task"] for row in score.rows}) == 7
    assert sum(row["correct"] for row in score.rows) == 14


def test_a_measure_that_is_no_share_is_refused(data_set, parrot):
    from evaluation.harness import score_benchmark

    data_set({"page": "some words of text"})
    with pytest.raises(InputError, match=r"wikitext: its metric word_perplexity,none is .*between 0 and 1"):
        score_benchmark(parrot([""]), Benchmark(task="wikitext"))
