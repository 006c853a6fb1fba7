"""The weighted mean of models (model soups, arXiv 2203.05482)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Parameter, declare

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = Parameter("weight", "float", 1.0, "weight of a model", symbol="w", per_model=True)


def cancel(weights: list[float]) -> bool:
    """Whether weights sum to 0, or so nearly that float32 says nothing of what is divided by the sum."""
    return abs(sum(weights)) <= max(1e-6 * sum(map(abs, weights)), 1e-30)


def check(shared: dict, settings: list[dict]) -> str | None:
    """A mean needs weights that do not sum to 0."""
    weights = [setting["weight"] for setting in settings]
    if shared["normalize"] and cancel(weights):
        return f"the weights sum to 0 ({', '.join(f'{w:g}' for w in weights)}); change them, or set normalize to false"
    return None


def merge(group: Group) -> Tensor:
    """`sum(w_i x_i)`, divided by `sum(w_i)` when `normalize` is set. Shape and dtype of the experts."""
    weights = group.weights()
    total = sum(weights)
    merged = group.experts[0] * weights[0]
    for weight, expert in zip(weights[1:], group.experts[1:], strict=True):
        merged.add_(expert * weight)  # not alpha: a fused multiply-add rounds once, on some machines only
    return merged.div_(total) if group.shared["normalize"] else merged


LINEAR = Method(
    name="linear",
    summary="weighted mean of the models' weights",
    paper="arXiv 2203.05482",
    needs_base=False,
    parameters=declare(WEIGHT, Parameter("normalize", "bool", True, "divide by the sum of the weights", symbol="norm")),
    merge=merge,
    kernel="merging.kernels.weighted:linear",
    version=2,
    check=check,
)
