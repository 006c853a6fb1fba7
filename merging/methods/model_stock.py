"""Model stock (arXiv 2403.19522): how far to go from the base to the experts' mean, from the angle between them."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.inner_products import inner_products

if TYPE_CHECKING:
    from torch import Tensor


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> float | None:
    """The ratio t of the whole tensor; None with `filter_wise`, where each row has its own."""
    if shared["filter_wise"]:
        return None
    products = inner_products(over, lambda group: group.deltas())
    cosines = [
        max(-1.0, min(1.0, products[i][j] / max((products[i][i] * products[j][j]) ** 0.5, 1e-6)))
        for i, j in combinations(range(len(settings)), 2)
    ]
    return ratio(sum(cosines) / len(cosines), len(settings))


def ratio(cosine: float, count: int) -> float:
    """`t = N cos / (1 + (N - 1) cos)`; 0, the base, where that has no finite value."""
    divisor = 1 + (count - 1) * cosine
    return 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor


def row_ratios(deltas: list[Tensor]) -> Tensor:
    """The ratio of each row, kept with size 1 in the last dimension."""
    import torch

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a.to(torch.float64) * b.to(torch.float64)).sum(-1, keepdim=True)

    cosines = [
        (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().clamp(min=1e-6)).clamp(-1, 1) for a, b in combinations(deltas, 2)
    ]
    cosine, count = sum(cosines) / len(cosines), len(deltas)
    divisor = 1 + (count - 1) * cosine
    singular = divisor.abs() < 1e-6
    return (count * cosine / divisor.masked_fill(singular, 1)).masked_fill(singular, 0)


def merge(group: Group) -> Tensor:
    """`b + t * mean(d_i)`."""
    deltas = group.deltas()
    t = group.facts if group.facts is not None else row_ratios(deltas).to(group.base.dtype)
    mean = deltas[0].clone()
    for delta in deltas[1:]:
        mean.add_(delta)
    return mean.div_(len(deltas)).mul_(t).add_(group.base)


MODEL_STOCK = Method(
    name="model_stock",
    summary="the base and the experts' mean, weighed by the angle between the deltas",
    paper="arXiv 2403.19522",
    needs_base=True,
    parameters=declare(Parameter("filter_wise", "bool", False, "a ratio for each row", symbol="filter")),
    version=2,
    merge=merge,
    survey=survey,
    experts=(2, None),
)
