"""Rescaling what sparsification keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Over, Parameter

if TYPE_CHECKING:
    from torch import Tensor

HELP = {
    "density": "divide what is kept by the probability of keeping it (the paper)",
    "l1": "match the L1 norm (mergekit's; true)",
    "none": "leave it (false)",
}


def rescale(default: str, *choices: str) -> Parameter:
    """`rescale` with a method's own choices and default; mergekit's true and false mean l1 and none."""
    text = "; ".join(f"{choice}: {HELP[choice]}" for choice in choices)
    aliases = {True: "l1", False: "none"}
    return Parameter("rescale", "choice", default, text, choices=choices, symbol="rescale", aliases=aliases)


def l1_divisors(over: Over, kept: Callable[[Group], list[Tensor]]) -> list[float]:
    """Per expert, what divides its kept entries to restore the L1 norm of its delta; 1 where either norm is about 0."""

    def norms(group: Group) -> list[tuple[float, float]]:
        return [(l1(delta), l1(rest)) for delta, rest in zip(group.deltas(), kept(group), strict=True)]

    sums = [[sum(side) for side in zip(*parts, strict=True)] for parts in zip(*over(norms), strict=True)]
    return [after / before if before >= 1e-7 and after >= 1e-7 else 1.0 for before, after in sums]


def l1(tensor: Tensor) -> float:
    return float(tensor.abs().sum())


def divided(deltas: list[Tensor], divisors: list[float]) -> list[Tensor]:
    """Each delta divided by its own number, in place."""
    return [delta.div_(divisor) if divisor != 1 else delta for delta, divisor in zip(deltas, divisors, strict=True)]
