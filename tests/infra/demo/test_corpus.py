"""The questions' answers are right, by computations that share nothing with the generator."""

import ast
import operator
import random
import re
from itertools import islice

import pytest

from infra.demo.corpus import SKILLS, SPLITS, split_of, stream
from infra.demo.questions import benchmark, calibration

ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub}


def arithmetic(question: str) -> str:
    tree = ast.parse(question.removeprefix("Compute "), mode="eval").body
    return str(ARITHMETIC[type(tree.op)](tree.left.value, tree.right.value))


def interpreter(question: str) -> str:
    return repr(eval(question.removeprefix(">>> "), {"__builtins__": {"len": len}}))


def template(question: str) -> str:
    first, second, modifiers, form = re.fullmatch(r"Write (\w+) (\w+) as ((?:\w+ )*)(\w+)", question).groups()
    pattern = {"csv": "{},{}", "list": "[{};{}]", "tags": "<{}><{}>", "path": "/{}/{}", "pair": "({}:{})"}
    pattern["query"] = "?{}={}"
    modifiers = modifiers.split()
    if "caps" in modifiers:
        first, second = first.upper(), second.upper()
    if "swapped" in modifiers:
        first, second = second, first
    return pattern[form].format(first, second)


INDEPENDENT = {"math": arithmetic, "code": interpreter, "instruct": template}


@pytest.mark.parametrize("skill", SKILLS)
def test_every_committed_answer_is_right(skill):
    examples = benchmark(skill) + [e for e in calibration() if e.skill == skill]
    assert [e.answer for e in examples] == [INDEPENDENT[skill](e.question) for e in examples]


@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_gives_right_answers_of_its_own_split_only(skill, split):
    examples = list(islice(stream(skill, split, 0.5, random.Random(3)), 300))
    assert {split_of(e.question) for e in examples} == {split}
    assert [e.answer for e in examples] == [INDEPENDENT[skill](e.question) for e in examples]


def test_the_splits_cover_every_question_once():
    assert sorted(bucket for buckets in SPLITS.values() for bucket in buckets) == list(range(100))


def test_a_seed_repeats_its_stream():
    first, second = (list(islice(stream("code", "train", 0.5, random.Random(5)), 50)) for _ in range(2))
    assert first == second
