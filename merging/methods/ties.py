"""TIES (arXiv 2306.01708): trim each delta, elect a sign per element, average what agrees with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.linear import WEIGHT
from merging.methods.rescale import divided, l1_divisors, rescale
from merging.methods.selection import Cut, largest
from merging.methods.task_arithmetic import INT8_MASK, LAMBDA, normalize

if TYPE_CHECKING:
    from torch import Tensor

KERNEL = "merging.kernels.cut:close"
DENSITY = Parameter(
    "density", "float", 1.0, "share of a delta's entries that is kept", low=0, high=1, symbol="d", per_model=True
)


@dataclass(frozen=True)
class Trimming:
    """What a survey finds: each expert's cut and divisor, and the sign (-1, 0, 1) of elements that sum to 0."""

    cuts: list[Cut]
    divisors: list[float]
    zero_sign: float = 1.0


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> Trimming:
    """The cuts of the experts' deltas. Over a tensor or the whole model, as `trim` says.

    `tensor`: mergekit's rule, exactly `int(density * numel)` entries stay. `mergelm` and `model`: MergeLM's, what is at
    least the `int(numel * (1 - density))`-th smallest stays, and sums of 0 take the sign most elements have.
    """
    densities = [setting["density"] for setting in settings]
    zero_sign = 1.0
    if shared["trim"] == "tensor":
        counts = [int(density * total) for density in densities]
        cuts = largest(over, magnitudes, counts, total, kernel=KERNEL)
    else:
        smallest = [int(total * (1 - density)) for density in densities]
        counts = [total - k + 1 if k else total for k in smallest]
        cuts = [Cut(cut.value) for cut in largest(over, magnitudes, counts, total, kernel=KERNEL)]
        balance = sum(over(lambda group: signs(total_of(group, cut_off(group, cuts)))))
        zero_sign = float((balance > 0) - (balance < 0))
    whole = [1.0] * len(cuts)
    divisors = l1_divisors(over, lambda group: cut_off(group, cuts)) if shared["rescale"] == "l1" else whole
    return Trimming(cuts, divisors, zero_sign)


def magnitudes(group: Group) -> list[Tensor]:
    return [delta.abs_() for delta in group.deltas()]


def signs(tensor: Tensor) -> int:
    """How many more entries are positive than negative."""
    return int((tensor > 0).sum()) - int((tensor < 0).sum())


def cut_off(group: Group, cuts: list[Cut]) -> list[Tensor]:
    return [cut.keep(delta, group.start) for delta, cut in zip(group.deltas(), cuts, strict=True)]


def total_of(group: Group, deltas: list[Tensor]) -> Tensor:
    """`t = sum(w_i d_i)`."""
    weights = group.weights()
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta * weight)
    return total


def elect(group: Group, deltas: list[Tensor], zero_sign: float = 1.0) -> Tensor:
    """`b + lambda * mix`: the mean (sum, without `normalize`) of the `w_i d_i` that carry the elected sign.

    The elected sign is that of `t = sum(w_i d_i)`, `zero_sign` where t is 0; an entry of 0 never agrees. A divisor of
    0 becomes 1. Works on `deltas` in place. In float arithmetic throughout: torch's bool operations are many times
    slower.
    """
    for delta, weight in zip(deltas, group.weights(), strict=True):
        if weight != 1:
            delta.mul_(weight)
    sign = deltas[0].clone()
    for delta in deltas[1:]:
        sign.add_(delta)
    sign.sign_()
    if zero_sign:
        sign.mul_(2).add_(zero_sign).clamp_(-1, 1)
    mixed = divisor = None
    for delta, weight in zip(deltas, group.weights(), strict=True):
        agreeing = delta.mul_(sign).relu_()
        mixed = agreeing.clone() if mixed is None else mixed.add_(agreeing)
        if group.shared["normalize"]:
            share = agreeing.sign_().mul_(weight)
            divisor = share if divisor is None else divisor.add_(share)
    mixed.mul_(sign)
    if group.shared["normalize"]:
        least = min(group.weights())
        # with positive weights a divisor of 0 means that nothing agreed, and any other number gives 0 as well
        mixed.div_(divisor.clamp_(min=least) if least > 0 else divisor.masked_fill_(divisor == 0, 1.0))
    return mixed.mul_(group.shared["lambda"]).add_(group.base)


def merge(group: Group) -> Tensor:
    """TIES of a block, trimmed at the cuts its survey found."""
    found: Trimming = group.facts
    return elect(group, divided(cut_off(group, found.cuts), found.divisors), found.zero_sign)


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
        rescale("none", "l1", "none"),
        INT8_MASK,
    ),
    merge=merge,
    survey=survey,
    kernel="merging.kernels.elect:ties",
    whole_model=lambda shared: shared["trim"] == "model",
)
