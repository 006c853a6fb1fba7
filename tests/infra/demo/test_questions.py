"""The committed question files are what the generator makes, and no question serves two purposes."""

import json
import random
from itertools import islice

import pytest

from infra.demo import questions, train
from infra.demo.batches import mixture
from infra.demo.corpus import SKILLS


@pytest.mark.parametrize("skill", SKILLS)
def test_the_benchmark_file_is_what_its_seed_gives(skill):
    assert (questions.TASKS / f"tiny_{skill}.jsonl").read_text() == questions.benchmark_lines(skill)


def test_the_calibration_file_is_what_its_seed_gives():
    assert questions.CALIBRATION.read_text() == questions.calibration_lines()


def committed_test_questions() -> list[str]:
    lines = [line for skill in SKILLS for line in (questions.TASKS / f"tiny_{skill}.jsonl").read_text().splitlines()]
    return [json.loads(line)["question"] for line in lines]


def test_each_benchmark_has_200_different_questions():
    asked = committed_test_questions()
    assert len(asked) == len(set(asked)) == 600


def test_calibration_and_test_are_disjoint():
    texts = [json.loads(line)["text"] for line in questions.CALIBRATION.read_text().splitlines()]
    asked = {text.rsplit("\n", 1)[0] for text in texts}
    assert len(asked) == len(texts) == 300
    assert not asked & set(committed_test_questions())


@pytest.mark.parametrize("stage", [train.BASE, *train.EXPERTS.values()], ids=["base", *train.EXPERTS])
def test_what_a_stage_trains_on_is_in_no_other_set(stage):
    held_out = set(committed_test_questions()) | {e.question for e in questions.calibration()}
    trained = {e.question for e in islice(mixture(stage.mixture, random.Random(stage.seed)), 10_000)}
    assert not trained & held_out
