"""The long-to-short pair's task: sums of several numbers, answered at once or step by step.

A step writes the sum again with its first numbers added up: `Compute 7+12+25` is answered `44` at once, and
`19+25=44` with every step. As in `corpus`, a question's own hash decides whether it trains, calibrates or tests.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from infra.demo.corpus import Example, split_of

LARGEST = 19
SKILL = "sums"


@dataclass(frozen=True)
class Sum:
    numbers: tuple[int, ...]

    @property
    def question(self) -> str:
        return f"Compute {written(self.numbers)}"

    @property
    def answer(self) -> str:
        return str(sum(self.numbers))

    def worked(self, leap: float, rng: random.Random) -> Example:
        """The sum with its steps; each line but the last is left out with probability `leap`."""
        lines = [(sum(self.numbers[:added]), *self.numbers[added:]) for added in range(2, len(self.numbers) + 1)]
        *steps, last = lines
        shown = [line for line in steps if rng.random() >= leap]
        return Example(SKILL, self.question, "=".join(written(line) for line in [*shown, last]))


def written(numbers: tuple[int, ...]) -> str:
    return "+".join(map(str, numbers))


def final(response: str) -> str:
    """The answer in a response: what follows the last equals sign."""
    return response.rpartition("=")[2].strip()


def sums(lengths: tuple[int, ...], split: str, rng: random.Random) -> Iterator[Sum]:
    """Sums of one split without end, each with one of `lengths` numbers from 1 to `LARGEST`; they may repeat."""
    while True:
        drawn = Sum(numbers(rng.choice(lengths), rng))
        if split_of(drawn.question) == split:
            yield drawn


def begun_sums(lengths: tuple[int, ...], split: str, rng: random.Random) -> Iterator[Sum]:
    """As `sums`, but the first number is what the first ones of a longer sum, of `max(lengths)` at most, add up to."""
    while True:
        length = rng.choice(lengths)
        begun = rng.randint(1, max(lengths) - length + 1)
        drawn = Sum((sum(numbers(begun, rng)), *numbers(length - 1, rng)))
        if split_of(drawn.question) == split:
            yield drawn


def numbers(count: int, rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(1, LARGEST) for _ in range(count))


def worked(drawn: Iterator[Sum], leaps: tuple[float, ...], rng: random.Random) -> Iterator[Example]:
    """Sums with their steps, each sum with one of `leaps` as the probability that a step is left out."""
    for one in drawn:
        yield one.worked(rng.choice(leaps), rng)
