"""What the pictures and the table of a report show: the same axes, numbers and colours in each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from evaluation.pareto import front

Row = dict[str, Any]

PANELS = 3
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#5B4B8A"]
"""Okabe and Ito's palette, without its black and yellow, and two more."""


@dataclass(frozen=True)
class Axis:
    """One objective: a benchmark's score in percent, or (`math.response_tokens`) its mean response length in tokens."""

    name: str
    maximise: bool

    @property
    def benchmark(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_length(self) -> bool:
        return "." in self.name

    @property
    def unit(self) -> str:
        return "tokens" if self.is_length else "%"

    @property
    def title(self) -> str:
        what = f"{self.benchmark} response length" if self.is_length else self.benchmark
        return f"{what} ({self.unit})" + ("" if self.maximise else ", less is better")

    def value(self, row: Row) -> float:
        score = row["scores"][self.benchmark]
        return score["response_tokens"] if self.is_length else 100 * score["value"]

    def error(self, row: Row) -> float:
        """One standard error, 0 where there is none."""
        return 0.0 if self.is_length else 100 * (row["scores"][self.benchmark]["stderr"] or 0.0)

    def text(self, row: Row) -> str:
        error = f" ± {self.error(row):.1f}" if self.error(row) else ""
        return f"{self.value(row):.1f}{error}"


def axes(objectives: Sequence[dict[str, str]]) -> list[Axis]:
    """The report's objectives, in its order."""
    return [Axis(one["name"], one["goal"] == "maximise") for one in objectives]


def axis_pairs(objectives: Sequence[dict[str, str]]) -> list[tuple[Axis, Axis]]:
    """The first pairs of objectives, one per panel; a single objective is set against itself."""
    found = axes(objectives)
    return list(combinations(found, 2))[:PANELS] or [(found[0], found[0])]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Candidates by falling hypervolume gain, then the experts, then the base."""
    kinds = ["candidate", "expert", "base"]
    return sorted(rows, key=lambda row: (kinds.index(row["kind"]), -(row.get("hypervolume_gain") or 0.0), row["name"]))


def combination(row: Row) -> str:
    """The experts in a candidate, which end its name: `ties(d=0.5) math+code` is of `math+code`."""
    return row["name"].rpartition(" ")[2]


def colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each combination of experts."""
    found = sorted(
        {combination(row) for row in rows if row["kind"] == "candidate"}, key=lambda one: (-one.count("+"), one)
    )
    return {one: COLOURS[place % len(COLOURS)] for place, one in enumerate(found)}


def staircase(rows: Sequence[Row], x: Axis, y: Axis) -> tuple[list[float], list[float]]:
    """The corners of the line that bounds what the rows dominate in this pair of objectives."""
    points = np.array([[x.value(row), y.value(row)] for row in rows])
    best = points[front(points, [x.maximise, y.maximise])]
    best = best[np.lexsort((best[:, 1], best[:, 0]))]
    line = [best[0]]
    for here, there in zip(best, best[1:], strict=False):
        # The corner that both points dominate: the worse of the two in each objective.
        corner = [(min if axis.maximise else max)(here[place], there[place]) for place, axis in enumerate((x, y))]
        line += [np.array(corner), there]
    return [float(point[0]) for point in line], [float(point[1]) for point in line]
