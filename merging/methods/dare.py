"""DARE (arXiv 2311.03099): drop delta entries at random and rescale the rest, then merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, declare
from merging.methods.linear import WEIGHT
from merging.methods.random import RAREST, keep_mask, masked
from merging.methods.rescale import divided, l1_divisors, rescale
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize, weighted_sum
from merging.methods.ties import DENSITY, elect

if TYPE_CHECKING:
    from torch import Tensor

RESCALE = rescale("density", "density", "l1", "none")


def check(shared: dict, settings: list[dict]) -> str | None:
    """A density above 0 must keep something, which is then divided by it."""
    rare = [setting["density"] for setting in settings if 0 < setting["density"] < RAREST]
    return f"density {rare[0]:g} keeps nothing; use 0, or at least {RAREST:.2g}" if rare else None


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> list[float]:
    """What divides each expert's kept entries."""
    if shared["rescale"] == "density":
        return [setting["density"] or 1.0 for setting in settings]
    return l1_divisors(over, kept) if shared["rescale"] == "l1" else [1.0] * len(settings)


def kept(group: Group) -> list[Tensor]:
    """Each expert's delta after the drop, its mask keyed by the seed, the expert's digest and the tensor's name."""
    return [
        masked(delta, keep_mask(delta, setting["density"], group.seed, key, group.name, group.start))
        for delta, setting, key in zip(group.deltas(), group.settings, group.keys, strict=True)
    ]


def dropped(group: Group) -> list[Tensor]:
    """Each expert's delta after DARE: dropped and rescaled."""
    return divided(kept(group), group.facts)


def merge_linear(group: Group) -> Tensor:
    """DARE, then task arithmetic."""
    return weighted_sum(group, dropped(group))


def merge_ties(group: Group) -> Tensor:
    """DARE, then the sign election of TIES."""
    return elect(group, dropped(group))


DARE_LINEAR = Method(
    name="dare_linear",
    summary="drop delta entries at random, rescale, then task arithmetic",
    paper="arXiv 2311.03099",
    needs_base=True,
    parameters=declare(WEIGHT, DENSITY, LAMBDA, normalize(False), RESCALE, INT8_MASK),
    merge=merge_linear,
    random=True,
    survey=survey,
    check=check,
    kernel="merging.kernels.dare:dare_linear",
    version=2,
)
DARE_TIES = Method(
    name="dare_ties",
    summary="drop delta entries at random, rescale, then the sign election of TIES",
    paper="arXiv 2311.03099",
    needs_base=True,
    parameters=declare(WEIGHT, DENSITY, LAMBDA, normalize(False), RESCALE, INT8_MASK),
    merge=merge_ties,
    random=True,
    survey=survey,
    check=check,
    kernel="merging.kernels.dare:dare_ties",
)
