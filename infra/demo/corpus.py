"""The demo family's three skills: questions with their answers, as many as one wants, from a seed.

Each skill has easy and hard kinds of question. The base meets mostly the easy ones; an expert learns all kinds of its
own skill. A question's own hash decides whether it trains, calibrates or tests, so the three sets cannot overlap.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_lowercase

SKILLS = ("math", "code", "instruct")
SPLITS = {"test": range(10), "calibration": range(10, 15), "train": range(15, 100)}


@dataclass(frozen=True)
class Example:
    skill: str
    question: str
    answer: str

    @property
    def text(self) -> str:
        """The text a model is trained on, without the special tokens around it."""
        return f"{self.question}\n{self.answer}"


def word(rng: random.Random, low: int, high: int, letters: str = ascii_lowercase) -> str:
    return "".join(rng.choice(letters) for _ in range(rng.randint(low, high)))


# --- math: arithmetic -------------------------------------------------------------------------------------------------


def small_sum(rng):
    a, b = rng.randint(10, 99), rng.randint(0, 9)
    return f"Compute {a}+{b}", str(a + b)


def small_difference(rng):
    a, b = rng.randint(10, 99), rng.randint(0, 9)
    return f"Compute {a}-{b}", str(a - b)


def sum_of_two(rng):
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return f"Compute {a}+{b}", str(a + b)


def difference_of_two(rng):
    b, a = sorted((rng.randint(10, 99), rng.randint(10, 99)))
    return f"Compute {a}-{b}", str(a - b)


# --- code: Python expressions over strings, answered as the interpreter prints them -----------------------------------


def expression(source: str, value) -> tuple[str, str]:
    return f">>> {source}", repr(value)


def join(rng):
    a, b = word(rng, 1, 3), word(rng, 1, 3)
    return expression(f'"{a}"+"{b}"', a + b)


def repeat(rng):
    a, n = word(rng, 1, 2), rng.randint(2, 3)
    return expression(f'"{a}"*{n}', a * n)


def short_reverse(rng):
    a = word(rng, 2, 3)
    return expression(f'"{a}"[::-1]', a[::-1])


def reverse(rng):
    a = word(rng, 4, 6)
    return expression(f'"{a}"[::-1]', a[::-1])


def cut(rng):
    a = word(rng, 4, 6)
    start = rng.randint(0, 2)
    stop = rng.randint(start + 1, 4)
    return expression(f'"{a}"[{start}:{stop}]', a[start:stop])


def drop(rng):
    a, n = word(rng, 4, 6), rng.randint(1, 3)
    return expression(f'"{a}"[{n}:]', a[n:])


def count(rng):
    a = word(rng, 4, 6, rng.choice(ascii_lowercase) + rng.choice(ascii_lowercase))
    letter = rng.choice(a)
    return expression(f'"{a}".count("{letter}")', a.count(letter))


def length(rng):
    a = word(rng, 2, 6)
    return expression(f'len("{a}")', len(a))


def find(rng):
    a = "".join(rng.sample(ascii_lowercase, rng.randint(3, 5)))
    letter = rng.choice(a)
    return expression(f'"{a}".find("{letter}")', a.find(letter))


# --- instruct: two words in a demanded format -------------------------------------------------------------------------

WRAPPERS: dict[str, Callable[[str, str], str]] = {
    "csv": lambda a, b: f"{a},{b}",
    "list": lambda a, b: f"[{a};{b}]",
    "tags": lambda a, b: f"<{a}><{b}>",
    "path": lambda a, b: f"/{a}/{b}",
    "pair": lambda a, b: f"({a}:{b})",
    "query": lambda a, b: f"?{a}={b}",
}


def formatted(rng, modifiers: list[str]):
    a, b = word(rng, 2, 3), word(rng, 2, 3)
    form = rng.choice(list(WRAPPERS))
    question = f"Write {a} {b} as {''.join(f'{m} ' for m in modifiers)}{form}"
    first, second = (b, a) if "swapped" in modifiers else (a, b)
    answer = WRAPPERS[form](first, second)
    return question, answer.upper() if "caps" in modifiers else answer


def plain_format(rng):
    return formatted(rng, [])


def caps_format(rng):
    return formatted(rng, ["caps"])


def swapped_format(rng):
    return formatted(rng, ["swapped"])


def swapped_caps_format(rng):
    return formatted(rng, ["swapped", "caps"])


EASY = {
    "math": (small_sum, small_difference),
    "code": (join, repeat, short_reverse),
    "instruct": (plain_format,),
}
HARD = {
    "math": (sum_of_two, difference_of_two),
    "code": (reverse, cut, drop, count, length, find),
    "instruct": (caps_format, swapped_format, swapped_caps_format),
}


def split_of(question: str) -> str:
    """Which of `SPLITS` a question belongs to, from its own text alone."""
    bucket = int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 100
    return next(name for name, buckets in SPLITS.items() if bucket in buckets)


def stream(skill: str, split: str, hard_share: float, rng: random.Random) -> Iterator[Example]:
    """Examples of one skill and split without end; `hard_share` of them of a hard kind. Questions may repeat."""
    while True:
        kinds = HARD[skill] if rng.random() < hard_share else EASY[skill]
        question, answer = rng.choice(kinds)(rng)
        if split_of(question) == split:
            yield Example(skill, question, answer)
