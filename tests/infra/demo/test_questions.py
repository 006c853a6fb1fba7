"""The committed question files are what the generator makes, and no question serves two purposes."""

import json
import random
from itertools import islice

import pytest

from infra.demo import questions, train, train_pair
from infra.demo.corpus import SKILLS

FILES = questions.files()
BENCHMARKS = [questions.TASKS / f"tiny_{name}.jsonl" for name in (*SKILLS, *questions.BENCHMARK_SUMS)]
CALIBRATION = [questions.CALIBRATION, questions.CALIBRATION_SUMS]
STAGES = {"base": train.BASE, **train.EXPERTS, **{f"pair {name}": stage for name, stage in train_pair.STAGES.items()}}


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_a_file_is_what_its_seed_gives(path):
    assert path.read_text() == FILES[path]


def test_every_benchmark_and_calibration_set_is_made():
    assert {*FILES} == {*BENCHMARKS, *CALIBRATION}


def committed_test_questions() -> list[str]:
    return [json.loads(line)["question"] for path in BENCHMARKS for line in path.read_text().splitlines()]


def committed_calibration_questions(path) -> list[str]:
    return [json.loads(line)["text"].rsplit("\n", 1)[0] for line in path.read_text().splitlines()]


def test_each_benchmark_has_200_different_questions():
    asked = committed_test_questions()
    assert len(asked) == len(set(asked)) == 200 * len(BENCHMARKS)


@pytest.mark.parametrize("path", CALIBRATION, ids=[path.name for path in CALIBRATION])
def test_calibration_and_test_are_disjoint(path):
    asked = committed_calibration_questions(path)
    assert len(asked) == len(set(asked)) == 300
    assert not set(asked) & set(committed_test_questions())


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_what_a_stage_trains_on_is_in_no_other_set(stage):
    held_out = {*committed_test_questions()}.union(*map(committed_calibration_questions, CALIBRATION))
    trained = {e.question for e in islice(stage.examples(random.Random(stage.seed)), 10_000)}
    assert len(trained) > 1000
    assert not trained & held_out
