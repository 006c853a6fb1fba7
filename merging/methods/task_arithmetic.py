"""Task arithmetic (arXiv 2212.04089): the base plus a weighted sum of the experts' deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Parameter, declare
from merging.methods.linear import WEIGHT

if TYPE_CHECKING:
    from torch import Tensor

LAMBDA = Parameter("lambda", "float", 1.0, "scale of the merged delta", symbol="l")
INT8_MASK = Parameter("int8_mask", "bool", False, "accepted for mergekit's files; changes nothing here")
IDLE_DENSITY = Parameter(
    "density", "float", 1.0, "accepted for mergekit's files; nothing is dropped", low=0, high=1, per_model=True
)
IDLE_RESCALE = Parameter("rescale", "bool", False, "accepted for mergekit's files; nothing is rescaled")


def normalize(default: bool) -> Parameter:
    """`normalize` with a method's own default."""
    return Parameter("normalize", "bool", default, "divide by the sum of the weights", symbol="norm")


def weighted_sum(group: Group, deltas: list[Tensor]) -> Tensor:
    """`b + lambda * sum(w_i d_i)`, the sum divided by `sum(w_i)` (1 where that is 0) when `normalize` is set."""
    weights = group.weights()
    mixed = deltas[0] * weights[0]
    for weight, delta in zip(weights[1:], deltas[1:], strict=True):
        mixed.add_(delta * weight)  # not alpha: a fused multiply-add rounds once, on some machines only
    if group.shared["normalize"]:
        total = sum(weights)
        mixed.div_(total if abs(total) >= 1e-8 else 1.0)
    return mixed.mul_(group.shared["lambda"]).add_(group.base)


def merge(group: Group) -> Tensor:
    """`b + lambda * sum(w_i d_i)`. Shape and dtype of the base."""
    return weighted_sum(group, group.deltas())


TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    summary="base plus the weighted sum of the experts' deltas",
    paper="arXiv 2212.04089",
    needs_base=True,
    parameters=declare(WEIGHT, LAMBDA, normalize(False), IDLE_DENSITY, IDLE_RESCALE, INT8_MASK),
    merge=merge,
    kernel="merging.kernels.weighted:task_arithmetic",
    version=2,
)
