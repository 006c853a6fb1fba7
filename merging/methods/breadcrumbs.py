"""Model breadcrumbs (arXiv 2312.06795): drop the smallest and the very largest entries of each delta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.linear import WEIGHT
from merging.methods.rescale import divided, l1_divisors, rescale
from merging.methods.selection import Cut, largest
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize, weighted_sum
from merging.methods.ties import DENSITY, elect, magnitudes

if TYPE_CHECKING:
    from torch import Tensor

GAMMA = Parameter(
    "gamma",
    "float",
    0.01,
    "share of a delta's largest entries that is dropped",
    low=0,
    high=1,
    symbol="g",
    per_model=True,
)


@dataclass(frozen=True)
class Band:
    """Per expert, the cut that keeps all but the smallest, the cut that keeps the outliers only, and the divisor."""

    floors: list[Cut]
    ceilings: list[Cut]
    divisors: list[float]


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> Band:
    """`int(density * numel)` entries stay: those below the `int(gamma * numel)` largest, fewer outliers if need be."""
    stay = [total if setting["density"] >= 1 else int(setting["density"] * total) for setting in settings]
    outliers = [
        min(int(setting["gamma"] * total), total - count) for setting, count in zip(settings, stay, strict=True)
    ]
    count = len(settings)
    cuts = largest(
        over,
        lambda group: magnitudes(group) * 2,
        [n + top for n, top in zip(stay, outliers, strict=True)] + outliers,
        total,
    )
    band = Band(cuts[:count], cuts[count:], [1.0] * count)
    if shared["rescale"] == "l1":
        return Band(band.floors, band.ceilings, l1_divisors(over, lambda group: within(group, band)))
    return band


def within(group: Group, band: Band) -> list[Tensor]:
    """Each expert's delta, its smallest entries and its outliers set to zero."""
    return [
        floor.keep(delta, group.start) - ceiling.keep(delta, group.start)
        for delta, floor, ceiling in zip(group.deltas(), band.floors, band.ceilings, strict=True)
    ]


def merge_linear(group: Group) -> Tensor:
    """Breadcrumbs, then task arithmetic."""
    return weighted_sum(group, divided(within(group, group.facts), group.facts.divisors))


def merge_ties(group: Group) -> Tensor:
    """Breadcrumbs, then the sign election of TIES."""
    return elect(group, divided(within(group, group.facts), group.facts.divisors))


PARAMETERS = declare(WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(False), rescale("none", "l1", "none"), INT8_MASK)
BREADCRUMBS = Method(
    name="breadcrumbs",
    summary="drop the smallest and the largest delta entries, then task arithmetic",
    paper="arXiv 2312.06795",
    needs_base=True,
    parameters=PARAMETERS,
    merge=merge_linear,
    version=2,
    survey=survey,
)
BREADCRUMBS_TIES = Method(
    name="breadcrumbs_ties",
    summary="drop the smallest and the largest delta entries, then the sign election of TIES",
    paper="arXiv 2312.06795",
    needs_base=True,
    parameters=PARAMETERS,
    merge=merge_ties,
    survey=survey,
)
