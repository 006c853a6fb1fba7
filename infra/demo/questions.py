"""The committed question files, benchmarks and calibration texts: `python -m infra.demo.questions`."""

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from infra.demo.corpus import SKILLS, Example, stream
from infra.demo.sums import Sum, sums, worked

TASKS = Path(__file__).parents[2] / "evaluation" / "tasks" / "tiny"
CALIBRATION = Path(__file__).parent / "calibration.jsonl"
CALIBRATION_SUMS = Path(__file__).parent / "calibration_sums.jsonl"
QUESTIONS_PER_BENCHMARK = 200
CALIBRATION_TEXTS_PER_SKILL = 100
HARD_SHARE = 0.75
BENCHMARK_SUMS = {"sums": 3, "long_sums": 5}
"""How many numbers the sums of each benchmark have."""


Asked = TypeVar("Asked", Example, Sum)


def distinct(examples: Iterable[Asked], count: int) -> list[Asked]:
    """The first `count` examples whose questions differ."""
    seen = set()
    new = (e for e in examples if e.question not in seen and not seen.add(e.question))
    return list(islice(new, count))


def benchmark(skill: str) -> list[Example]:
    """A skill's test questions, the same ones at every call."""
    rng = random.Random(f"{skill} test")
    return distinct(stream(skill, "test", HARD_SHARE, rng), QUESTIONS_PER_BENCHMARK)


def calibration() -> list[Example]:
    """Questions and answers of all skills in turn, none of them in a benchmark."""
    per_skill = []
    for skill in SKILLS:
        rng = random.Random(f"{skill} calibration")
        per_skill.append(distinct(stream(skill, "calibration", HARD_SHARE, rng), CALIBRATION_TEXTS_PER_SKILL))
    return [example for turn in zip(*per_skill, strict=True) for example in turn]


def benchmark_sums(name: str) -> list[Sum]:
    """A benchmark of the long-to-short pair, the same sums at every call."""
    drawn = sums((BENCHMARK_SUMS[name],), "test", random.Random(f"{name} test"))
    return distinct(drawn, QUESTIONS_PER_BENCHMARK)


def calibration_sums() -> list[Example]:
    """Sums of two to five numbers, half of them with every step and half with none, none of them in a benchmark."""
    rng = random.Random("sums calibration")
    return distinct(worked(sums((2, 3, 4, 5), "calibration", rng), (0, 1), rng), 300)


def benchmark_lines(name: str, examples: Iterable[Example | Sum]) -> str:
    rows = ({"id": f"{name}-{i:03}", "question": e.question, "answer": e.answer} for i, e in enumerate(examples))
    return "".join(json.dumps(row) + "\n" for row in rows)


def calibration_lines(examples: Iterable[Example]) -> str:
    return "".join(json.dumps({"text": e.text}) + "\n" for e in examples)


def files() -> dict[Path, str]:
    """Every committed question file and what is in it."""
    benchmarks = {skill: benchmark(skill) for skill in SKILLS} | {name: benchmark_sums(name) for name in BENCHMARK_SUMS}
    return {
        **{TASKS / f"tiny_{name}.jsonl": benchmark_lines(name, asked) for name, asked in benchmarks.items()},
        CALIBRATION: calibration_lines(calibration()),
        CALIBRATION_SUMS: calibration_lines(calibration_sums()),
    }


def main() -> None:
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
