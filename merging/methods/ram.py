"""RAM (arXiv 2601.13572): add what one expert alone changed, average what several did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Parameter, declare

if TYPE_CHECKING:
    from torch import Tensor


def merge(group: Group) -> Tensor:
    """`b + sum(d_i) / n` over the n experts with `|d_i| > epsilon`."""
    merged, count = group.base.new_zeros(group.base.shape), group.base.new_zeros(group.base.shape)
    for delta in group.deltas():
        changed = delta.abs() > group.shared["epsilon"]
        merged.add_(delta * changed)
        count.add_(changed)
    return merged.div_(count.clamp_(min=1)).add_(group.base)


RAM = Method(
    name="ram",
    summary="add what one expert alone changed, average what several did",
    paper="arXiv 2601.13572",
    needs_base=True,
    parameters=declare(Parameter("epsilon", "float", 1e-5, "a change no larger than this is none", low=0, symbol="e")),
    merge=merge,
)
