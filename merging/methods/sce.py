"""SCE (arXiv 2408.07990): select the elements that vary most, weigh the experts, erase the minority's signs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.selection import EVERYTHING, Cut, largest
from merging.methods.task_arithmetic import INT8_MASK

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Selection:
    """The cut on the variance over experts (None: nothing is selected), and each expert's weight."""

    cut: Cut | None
    weights: list[float]


def variance(deltas: list[Tensor]) -> Tensor:
    """The population variance over the experts, element by element."""
    import torch

    stacked = torch.stack(deltas)
    return stacked.sub_(stacked.mean(dim=0)).square_().mean(dim=0)


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> Selection:
    """`int(select_topk * n)` elements are selected, n those whose variance is not 0; weights are mean squares."""
    cut: Cut | None = EVERYTHING
    if shared["select_topk"] < 1:
        nonzero = sum(over(lambda group: int((variance(group.deltas()) != 0).sum())))
        count = int(nonzero * shared["select_topk"])
        cut = largest(over, lambda group: [variance(group.deltas())], [count], total)[0] if count else None
    parts = over(lambda group: [float(delta.square().sum()) for delta in selected(group, cut)])
    squares = [math.fsum(column) / max(total, 1) for column in zip(*parts, strict=True)]
    whole = math.fsum(squares)
    equal = [1 / len(squares)] * len(squares)
    return Selection(cut, equal if whole < 1e-6 else [square / whole for square in squares])


def selected(group: Group, cut: Cut | None) -> list[Tensor]:
    """The deltas with the elements that are not selected set to zero."""
    deltas = group.deltas()
    if cut is None:
        return [delta.zero_() for delta in deltas]
    if cut is EVERYTHING:
        return deltas
    mask = cut.keep(variance(deltas), group.start) != 0
    return [delta.mul_(mask) for delta in deltas]


def merge(group: Group) -> Tensor:
    """`b + sum(w_i d_i) / sum(w_i)` over the experts whose sign is that of the deltas' sum."""
    deltas = selected(group, group.facts.cut)
    positive = sum(deltas[1:], deltas[0]) >= 0
    mixed, divisor = group.base.new_zeros(group.base.shape), group.base.new_zeros(group.base.shape)
    for delta, weight in zip(deltas, group.facts.weights, strict=True):
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        mixed.add_((delta * agrees).mul_(weight))  # not alpha, which rounds once on some machines only
        divisor.add_(agrees.to(delta.dtype).mul_(weight))
    return mixed.div_(divisor.clamp_(min=1e-6)).add_(group.base)


SCE = Method(
    name="sce",
    summary="select what varies most over the experts, weigh by size, erase the minority's signs",
    paper="arXiv 2408.07990",
    needs_base=True,
    version=2,
    parameters=declare(
        Parameter(
            "select_topk", "float", 1.0, "share of the elements that vary which is kept", low=0, high=1, symbol="k"
        ),
        INT8_MASK,
    ),
    merge=merge,
    survey=survey,
)
