"""Every step of a worked sum is worth the same, and a share of the steps is left out."""

import random
from itertools import islice

import pytest

from infra.demo.corpus import SPLITS, split_of
from infra.demo.questions import BENCHMARK_SUMS, benchmark_sums, calibration_sums
from infra.demo.sums import LARGEST, Sum, begun_sums, final, sums, worked


def value(expression: str) -> int:
    return eval(expression, {"__builtins__": {}})


def test_every_step_adds_the_first_two_numbers():
    assert Sum((7, 12, 25, 1)).worked(0, random.Random(0)).text == "Compute 7+12+25+1\n19+25+1=44+1=45"


def test_without_steps_the_answer_stands_alone():
    assert Sum((7, 12, 25, 1)).worked(1, random.Random(0)).text == "Compute 7+12+25+1\n45"


@pytest.mark.parametrize("leap", [0, 0.4, 1])
def test_every_line_is_worth_the_sum_and_ends_in_the_answer(leap):
    rng = random.Random(1)
    for example in islice(worked(sums((2, 3, 5), "train", rng), (leap,), rng), 200):
        total = value(example.question.removeprefix("Compute "))
        assert {value(line) for line in example.answer.split("=")} == {total}
        assert final(example.answer) == str(total)


def test_steps_are_left_out_with_the_given_probability():
    rng = random.Random(2)
    examples = islice(worked(sums((5,), "train", rng), (0.4,), rng), 1000)
    shown = sum(example.answer.count("=") for example in examples) / 1000
    assert shown == pytest.approx(3 * 0.6, abs=0.1)


@pytest.mark.parametrize("kind", [sums, begun_sums])
@pytest.mark.parametrize("split", SPLITS)
def test_sums_are_of_their_own_split_and_of_the_lengths_asked_for(split, kind):
    drawn = list(islice(kind((2, 4), split, random.Random(3)), 300))
    assert {split_of(one.question) for one in drawn} == {split}
    assert {len(one.numbers) for one in drawn} == {2, 4}


def test_a_begun_sum_starts_with_what_the_longest_sum_can_have_added_up():
    drawn = list(islice(begun_sums((2, 4), "train", random.Random(4)), 1000))
    assert max(one.numbers[0] for one in drawn if len(one.numbers) == 4) == LARGEST
    assert 2 * LARGEST < max(one.numbers[0] for one in drawn if len(one.numbers) == 2) <= 3 * LARGEST
    assert max(number for one in drawn for number in one.numbers[1:]) == LARGEST


@pytest.mark.parametrize("name", BENCHMARK_SUMS)
def test_every_answer_of_a_benchmark_is_right(name):
    asked = benchmark_sums(name)
    assert {one.question.count("+") + 1 for one in asked} == {BENCHMARK_SUMS[name]}
    assert [int(one.answer) for one in asked] == [value(one.question.removeprefix("Compute ")) for one in asked]


def test_calibration_has_sums_with_all_their_steps_and_with_none():
    steps = [(e.question.count("+"), e.answer.count("=")) for e in calibration_sums()]
    assert all(shown in (0, additions - 1) for additions, shown in steps)
    assert 100 < sum(shown > 0 for _, shown in steps) < 200


@pytest.mark.parametrize(("response", "answer"), [("45", "45"), ("44+1=45", "45"), ("19+26=44+", "44+"), ("3=", "")])
def test_the_answer_follows_the_last_equals_sign(response, answer):
    assert final(response) == answer
