"""TIES (arXiv 2306.01708): trim each delta, elect a sign per element, average what agrees with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Parameter, declare
from merging.methods.linear import WEIGHT
from merging.methods.survey import ModelTrim, majority, survey_model_trim
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = Parameter(
    "density", "float", 1.0, "share of a delta's entries that is kept", low=0, high=1, symbol="d", per_model=True
)


def trim(delta: Tensor, density: float) -> Tensor:
    """A delta with all but its `int(density * numel)` largest magnitudes set to zero.

    Among equal magnitudes at the cut, those of the lowest index stay, so that the result is the same everywhere.
    """
    keep = int(density * delta.numel())
    if keep >= delta.numel():
        return delta
    if keep == 0:
        return delta.new_zeros(delta.shape)
    flat = delta.flatten()
    magnitude = flat.abs()
    cut = magnitude.kthvalue(flat.numel() - keep + 1).values
    above = magnitude > cut
    at_cut = magnitude == cut
    room = keep - int(above.sum())
    kept = above | (at_cut & (at_cut.cumsum(0) <= room))
    return (flat * kept).reshape(delta.shape)


def trim_below(delta: Tensor, density: float) -> Tensor:
    """MergeLM's trimming: what is below the `int(numel * (1 - density))`-th smallest magnitude is set to zero."""
    k = int(delta.numel() * (1 - density))
    if k == 0:
        return delta
    magnitude = delta.abs()
    return delta * (magnitude >= magnitude.flatten().kthvalue(k).values)


def elect(group: Group, deltas: list[Tensor], zero_sign: float | None = 1.0) -> Tensor:
    """`b + lambda * mix`: the mean (sum, without `normalize`) of the `w_i d_i` that carry the elected sign.

    The elected sign is that of `t = sum(w_i d_i)`; where t is 0 it is `zero_sign`, or with None the sign most of the
    tensor's entries have. An entry of 0 never agrees. A divisor of 0 becomes 1.
    """
    weighted = [delta * weight for delta, weight in zip(deltas, group.weights(), strict=True)]
    total = weighted[0].clone()
    for delta in weighted[1:]:
        total.add_(delta)
    sign = total.sign()
    if zero_sign is None:
        zero_sign = majority(sign)
    if zero_sign:
        sign.masked_fill_(sign == 0, zero_sign)
    mixed = total.zero_()
    divisor = mixed.clone()
    for delta, weight in zip(weighted, group.weights(), strict=True):
        agrees = delta * sign > 0
        mixed.add_(delta.mul_(agrees))
        divisor.add_(agrees, alpha=weight)
    if group.shared["normalize"]:
        mixed.div_(divisor.masked_fill_(divisor == 0, 1.0))
    return mixed.mul_(group.shared["lambda"]).add_(group.base)


def merge(group: Group) -> Tensor:
    """TIES of one tensor; with `trim: model` the cut and the majority sign come from the survey of the model."""
    deltas = group.deltas()
    scope = group.shared["trim"]
    if scope == "model":
        found: ModelTrim = group.survey
        return elect(group, [found.trim(delta, i) for i, delta in enumerate(deltas)], found.majority)
    cut = trim_below if scope == "mergelm" else trim
    trimmed = [cut(delta, setting["density"]) for delta, setting in zip(deltas, group.settings, strict=True)]
    return elect(group, trimmed, None if scope == "mergelm" else 1.0)


TIES = Method(
    name="ties",
    summary="trim the deltas, elect a sign per element, average what agrees",
    paper="arXiv 2306.01708",
    needs_base=True,
    parameters=declare(
        WEIGHT,
        DENSITY,
        LAMBDA,
        normalize(True),
        Parameter(
            "trim",
            "choice",
            "tensor",
            "what density is a share of: each tensor (tensor: mergekit's rule; mergelm: MergeLM's), or the whole model",
            choices=("tensor", "model", "mergelm"),
            symbol="trim",
        ),
        INT8_MASK,
    ),
    merge=merge,
    survey=survey_model_trim,
)
