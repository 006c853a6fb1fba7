"""DELLA (arXiv 2406.11617): drop delta entries at random, the larger ones of a row less often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.linear import WEIGHT
from merging.methods.random import RAREST, random_bits
from merging.methods.rescale import divided, l1_divisors, rescale
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize, weighted_sum
from merging.methods.ties import DENSITY, elect

if TYPE_CHECKING:
    from torch import Tensor

EPSILON = Parameter(
    "epsilon",
    "float",
    0.15,
    "how far the probability of keeping goes from density, down for the smallest and up for the largest of a row",
    low=0,
    high=1,
    symbol="e",
    per_model=True,
)


def check(shared: dict, settings: list[dict]) -> str | None:
    """`density` +- `epsilon` are probabilities that a mask can have."""
    for density, epsilon in ((setting["density"], setting["epsilon"]) for setting in settings):
        if 0 < density < 1 and not (density - epsilon >= RAREST and density + epsilon < 1):
            found = f"found {density:g} and {epsilon:g}"
            return f"density - epsilon and density + epsilon must lie between 0 and 1, {found}"
    return None


def probabilities(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """The probability of keeping each entry: from density - epsilon to density + epsilon by its rank in its row.

    Equal magnitudes rank by position. A tensor of one dimension is one row. Shape and dtype of `delta`.
    """
    rows = delta if delta.dim() > 1 else delta.unsqueeze(0)
    rows = rows.reshape(-1, rows.shape[-1]) if rows.numel() else rows
    ranks = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1).to(delta.dtype)
    steps = max(rows.shape[-1] - 1, 1)
    return ranks.mul_(2 * epsilon / steps).add_(density - epsilon).reshape(delta.shape)


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> list[float]:
    """What divides each expert's kept entries; with `density` each is divided by its own probability instead."""
    if shared["rescale"] == "l1":
        return l1_divisors(over, kept)
    return [1.0] * len(settings)


def kept(group: Group) -> list[Tensor]:
    """Each expert's delta after the drop."""
    by_probability = group.shared["rescale"] == "density"
    found = []
    for delta, setting, key in zip(group.deltas(), group.settings, group.keys, strict=True):
        if 0 < setting["density"] < 1:
            probability = probabilities(delta, setting["density"], setting["epsilon"])
            bits = random_bits(delta, group.seed, key, group.name, group.start)
            stays = bits.to(delta.dtype) < probability * (1 << 31)
            delta = delta * stays
            delta = delta / probability if by_probability else delta
        elif setting["density"] == 0:
            delta = delta.zero_()
        found.append(delta)
    return found


def merge_linear(group: Group) -> Tensor:
    """DELLA's drop, then task arithmetic."""
    return weighted_sum(group, divided(kept(group), group.facts))


def merge_ties(group: Group) -> Tensor:
    """DELLA's drop, then the sign election of TIES."""
    return elect(group, divided(kept(group), group.facts))


RESCALE = rescale("l1", "density", "l1", "none")
DELLA = Method(
    name="della",
    summary="drop delta entries at random by their rank, then the sign election of TIES",
    paper="arXiv 2406.11617",
    needs_base=True,
    parameters=declare(WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(True), RESCALE, INT8_MASK),
    merge=merge_ties,
    survey=survey,
    random=True,
    check=check,
)
DELLA_LINEAR = Method(
    name="della_linear",
    summary="drop delta entries at random by their rank, then task arithmetic",
    paper="arXiv 2406.11617",
    needs_base=True,
    parameters=declare(WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(False), RESCALE, INT8_MASK),
    merge=merge_linear,
    version=2,
    survey=survey,
    random=True,
    check=check,
)
