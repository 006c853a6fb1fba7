"""Methods of mergekit for a base and one other model, or for one model alone: nearswap, arcee_fusion, passthrough."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.selection import largest

if TYPE_CHECKING:
    from torch import Tensor


def nearswap(group: Group) -> Tensor:
    """`b + w (x - b)` with `w = min(1, t / |x - b|)`: what lies near the base is swapped whole."""
    (delta,) = group.deltas()
    weight = (group.shared["t"] / delta.abs().clamp_(min=1e-6)).clamp_(0, 1)
    return weight * group.experts[0] + (1 - weight) * group.base


def importance(group: Group) -> Tensor:
    """`|x - b| * KL(softmax(x) || softmax(b))`, the divergence by row of the last dimension. Shape of the base."""
    (expert,), base = group.experts, group.base
    p, q = expert.softmax(-1).add_(1e-8), base.softmax(-1).add_(1e-8)
    divergence = (p * (p / q).log_()).sum(-1, keepdim=True)
    return ((expert - base).abs_() * divergence).clamp_(min=0)


def fusion_survey(over: Over, total: int, shared: dict, settings: list[dict]) -> float:
    """The threshold `median + 1.5 (q3 - q1)` of the importance, from its exact quartiles."""
    if total == 0:
        return 0.0
    counts = [total - int(q * (total - 1)) for q in (0.25, 0.5, 0.75)]
    cuts = largest(over, lambda group: [importance(group)] * 3, counts, total, by_row=True)
    # a cut that keeps all has no value; the quartile is the least then, of a handful of elements
    least = min(over(lambda group: float(importance(group).min()))) if total in counts else 0.0
    q1, median, q3 = (least if count == total else cut.value for count, cut in zip(counts, cuts, strict=True))
    return median + 1.5 * (q3 - q1)


def fusion(group: Group) -> Tensor:
    """The base, with the expert's value where its importance reaches the threshold."""
    (delta,) = group.deltas()
    return delta.mul_(importance(group) >= group.facts).add_(group.base)


def passthrough(group: Group) -> Tensor:
    """The model itself, times `scale`."""
    return group.experts[0] * group.settings[0]["scale"]


NEARSWAP = Method(
    name="nearswap",
    summary="the base, swapped for the other model where the two are near",
    paper="huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    needs_base=True,
    parameters=declare(Parameter("t", "float", 0.0001, "distance within which a weight is swapped", low=0, symbol="t")),
    merge=nearswap,
    experts=(1, 1),
)
ARCEE_FUSION = Method(
    name="arcee_fusion",
    summary="the base, with the other model's most important changes",
    paper="arcee.ai",
    needs_base=True,
    parameters={},
    version=2,
    merge=fusion,
    survey=fusion_survey,
    experts=(1, 1),
)
PASSTHROUGH = Method(
    name="passthrough",
    summary="one model as it is, for stacking layers",
    paper="mergekit",
    needs_base=False,
    parameters=declare(Parameter("scale", "float", 1.0, "factor of every weight", symbol="s", per_model=True)),
    merge=passthrough,
    experts=(1, 1),
)
