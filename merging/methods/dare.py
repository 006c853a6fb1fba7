"""DARE (arXiv 2311.03099): drop delta entries at random and rescale the rest, then merge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Parameter, declare
from merging.methods.linear import WEIGHT
from merging.methods.random import keep_mask
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize, weighted_sum
from merging.methods.ties import DENSITY, elect

if TYPE_CHECKING:
    from torch import Tensor

RESCALE = Parameter(
    "rescale",
    "choice",
    "density",
    "divide what is kept by density (the paper), match the L1 norm (mergekit >= 0.1.0; true), or neither (none; false)",
    choices=("density", "l1", "none"),
    symbol="rescale",
    aliases={True: "l1", False: "none"},
)


def drop(delta: Tensor, mask: Tensor, density: float, rescale: str) -> Tensor:
    """A delta with the entries outside the bool `mask` set to zero and the rest rescaled."""
    kept = delta * mask
    if rescale == "density":
        return kept.div_(density) if 0 < density < 1 else kept
    if rescale == "l1":
        before, after = delta.abs().sum(), kept.abs().sum()
        return kept.mul_(before / after) if before >= 1e-7 and after >= 1e-7 else kept
    return kept


def dropped(group: Group) -> list[Tensor]:
    """Each expert's delta after DARE, its mask keyed by the seed, the expert's digest and the tensor's name."""
    return [
        drop(
            delta,
            keep_mask(delta, setting["density"], group.seed, key, group.name),
            setting["density"],
            group.shared["rescale"],
        )
        for delta, setting, key in zip(group.deltas(), group.settings, group.keys, strict=True)
    ]


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
)
DARE_TIES = Method(
    name="dare_ties",
    summary="drop delta entries at random, rescale, then the sign election of TIES",
    paper="arXiv 2311.03099",
    needs_base=True,
    parameters=declare(WEIGHT, DENSITY, LAMBDA, normalize(False), RESCALE, INT8_MASK),
    merge=merge_ties,
    random=True,
)
