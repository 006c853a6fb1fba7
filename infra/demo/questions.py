"""The committed question files, three benchmarks and calibration texts: `python -m infra.demo.questions`."""

import json
import random
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from infra.demo.corpus import SKILLS, Example, stream

TASKS = Path(__file__).parents[2] / "evaluation" / "tasks" / "tiny"
CALIBRATION = Path(__file__).parent / "calibration.jsonl"
QUESTIONS_PER_BENCHMARK = 200
CALIBRATION_TEXTS_PER_SKILL = 100
HARD_SHARE = 0.75


def distinct(examples: Iterable[Example], count: int) -> list[Example]:
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


def benchmark_lines(skill: str) -> str:
    rows = (
        {"id": f"{skill}-{i:03}", "question": e.question, "answer": e.answer} for i, e in enumerate(benchmark(skill))
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def calibration_lines() -> str:
    return "".join(json.dumps({"text": e.text}) + "\n" for e in calibration())


def main() -> None:
    for skill in SKILLS:
        (TASKS / f"tiny_{skill}.jsonl").write_text(benchmark_lines(skill))
    CALIBRATION.write_text(calibration_lines())


if __name__ == "__main__":
    main()
