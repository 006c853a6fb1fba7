"""Did informing a merge help? Candidates of a study set against each other, question by question."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from math import erfc, sqrt
from statistics import fmean, variance

from evaluation.front_view import Axis, Row, axes
from merging.errors import InputError

Question = tuple[str, int]
Samples = Mapping[str, Mapping[str, Sequence[Row]]]
"""What models answered: by the model's name, then by benchmark, the rows that evaluation/samples.py makes."""

LIMIT = 2
"""Standard errors beyond which two values count as different."""
BY_CHANCE = erfc(LIMIT / sqrt(2))
"""The share of comparisons of equal models that come out beyond LIMIT, were the differences normal."""
PAIRS = (
    ("aim", "plain"),
    ("acm", "plain"),
    ("acm_uniform", "plain"),
    ("acm", "acm_uniform"),
    ("acm", "acm_shuffled"),
)
"""What is set against what: AIM and ACM against the plain merge, ACM against its controls, the scaling alone."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    stderr: float

    @property
    def differs(self) -> bool:
        """Whether it is further than LIMIT standard errors from zero."""
        return abs(self.value) > LIMIT * self.stderr


@dataclass(frozen=True)
class Group:
    """A plain merge and what activations made of it; `rows` are a report's, the plain one first."""

    name: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Comparison:
    """Two candidates of a group on one objective; `differences` is by question, in points or tokens."""

    group: str
    what: Row
    against: Row
    axis: Axis
    differences: Mapping[Question, float]

    @property
    def pair(self) -> tuple[str, str]:
        return self.what["informed"], self.against["informed"]

    @property
    def estimate(self) -> Estimate:
        return mean(self.differences.values())


@dataclass(frozen=True)
class Finding:
    """One of PAIRS over all groups, for the scores or for the response lengths.

    `better` and `worse` of `count` comparisons differ by more than LIMIT standard errors; `average` is the difference
    over all of them, in points or tokens.
    """

    pair: tuple[str, str]
    is_length: bool
    better: int
    worse: int
    count: int
    average: Estimate
    maximise: bool

    @property
    def verdict(self) -> int:
        """1 where the average is better by more than LIMIT standard errors, -1 where it is worse, else 0."""
        if not self.average.differs:
            return 0
        return 1 if (self.average.value > 0) == self.maximise else -1


def mean(values: Iterable[float]) -> Estimate:
    """The mean of independent values with the standard error sqrt(variance / n), the variance over n - 1.

    InputError for fewer than two values.
    """
    values = list(values)
    if len(values) < 2:
        raise InputError(f"a standard error needs two questions or more, found {len(values)}")
    return Estimate(fmean(values), sqrt(variance(values) / len(values)))


def per_question(rows: Sequence[Row], axis: Axis) -> dict[Question, float]:
    """Each question's score in points, or its response's length in tokens; InputError where it has no such number."""
    found = {}
    for row in rows:
        value = row["response_tokens"] if axis.is_length else row["correct"]
        if not isinstance(value, int | float):
            raise InputError(f"{axis.name}: question {row['question']} of {row['task']} has no number, found {value!r}")
        found[row["task"], row["question"]] = value if axis.is_length else 100 * value
    return found


def groups(rows: Sequence[Row]) -> list[Group]:
    """A report's candidates about each plain merge.

    ACM replaces the parameters of task arithmetic, so that its candidates belong to every plain merge by that method.
    """
    candidates = [row for row in rows if row["kind"] == "candidate"]
    found = []
    for plain in (row for row in candidates if row["informed"] == "plain"):
        of_it = [
            row
            for row in candidates
            if row["informed"] != "plain"
            and (row["method"], row["combination"]) == (plain["method"], plain["combination"])
            and (row["parameters"] == plain["parameters"] or (row["t"] is not None and not row["parameters"]))
        ]
        found.append(Group(plain["name"], [plain, *of_it]))
    return found


def comparisons(report: Mapping[str, object], samples: Samples) -> list[Comparison]:
    """Every one of PAIRS in every group and objective of a report; ACM meets the controls of its own t.

    InputError where two candidates were not asked the same questions.
    """
    found, done = [], set()
    for group in groups(report["rows"]):
        for what, against in _pairs(group.rows):
            names = what["name"], against["name"]
            if names not in done:  # the same ACM candidates may stand in several groups
                found += _compared(group.name, what, against, axes(report["objectives"]), samples)
            done.add(names)
    return found


def findings(compared: Sequence[Comparison]) -> list[Finding]:
    """What the comparisons come to: a finding for each pair, of scores first and then of lengths."""
    found = []
    for is_length in (False, True):
        for pair in PAIRS:
            chosen = [one for one in compared if one.pair == pair and one.axis.is_length == is_length]
            if chosen:
                signs = [_sign(one) for one in chosen]
                count, maximise = len(chosen), chosen[0].axis.maximise
                found.append(Finding(pair, is_length, signs.count(1), signs.count(-1), count, pooled(chosen), maximise))
    return found


def pooled(compared: Sequence[Comparison]) -> Estimate:
    """The mean difference over several comparisons; its error allows for groups that answered the same questions.

    A question's differences are averaged over the groups first; then come the questions of an objective, which are
    independent of each other, and the objectives, which are too.
    """
    estimates = []
    by_name = sorted(compared, key=lambda one: one.axis.name)
    for _, of_axis in groupby(by_name, key=lambda one: one.axis.name):
        differences = [one.differences for one in of_axis]
        estimates.append(mean(fmean(one[question] for one in differences) for question in differences[0]))
    error = sqrt(sum(one.stderr**2 for one in estimates)) / len(estimates)
    return Estimate(fmean(one.value for one in estimates), error)


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    for first, second in PAIRS:
        for what, against in product(rows, rows):
            same_t = second == "plain" or what["t"] == against["t"]
            if (what["informed"], against["informed"]) == (first, second) and same_t:
                yield what, against


def _compared(name: str, what: Row, against: Row, every: Sequence[Axis], samples: Samples) -> list[Comparison]:
    found = []
    for axis in every:
        one, other = (per_question(samples[row["name"]][axis.benchmark], axis) for row in (what, against))
        if one.keys() != other.keys():
            raise InputError(
                f"{axis.benchmark}: {what['name']} and {against['name']} were asked different questions "
                f"({len(one.keys() ^ other.keys())} of them); run the study again"
            )
        differences = {question: value - other[question] for question, value in one.items()}
        found.append(Comparison(name, what, against, axis, differences))
    return found


def _sign(compared: Comparison) -> int:
    estimate = compared.estimate
    if not estimate.differs:
        return 0
    return 1 if (estimate.value > 0) == compared.axis.maximise else -1
