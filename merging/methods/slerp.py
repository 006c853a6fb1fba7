"""Interpolation between two models along the arc: slerp and nuslerp."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.inner_products import combine, inner_products, origin_vectors
from merging.methods.linear import WEIGHT

if TYPE_CHECKING:
    from torch import Tensor


PARALLEL = 1e-12  # 1 - cosine^2 at which two vectors lie on one line: between opposite ones no arc is the shortest


def arc(t, cosine: float) -> tuple[float, float]:
    """The coefficients of spherical interpolation at `t` between vectors at an angle of this cosine."""
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def slerp_survey(over: Over, total: int, shared: dict, settings: list[dict]) -> tuple[float, float]:
    """Coefficients of base and expert; linear where they are nearly parallel (|cosine| > 0.9995)."""
    products = inner_products(over, lambda group: [group.base, group.experts[0]])
    lengths = [math.sqrt(products[i][i]) for i in (0, 1)]
    lengths = [length if length > 1e-8 else 1.0 for length in lengths]
    cosine = max(-1.0, min(1.0, products[0][1] / (lengths[0] * lengths[1])))
    t = shared["t"]
    return (1 - t, t) if abs(cosine) > 0.9995 else arc(t, cosine)


def slerp_merge(group: Group) -> Tensor:
    """`c_0 b + c_1 x`."""
    return (group.base * group.facts[0]).add_(group.experts[0] * group.facts[1])


def nuslerp_t(settings: list[dict]) -> float:
    """The second model's share of the weights; a half where they cancel."""
    first, second = (setting["weight"] for setting in settings)
    return 0.5 if abs(first + second) < 1e-6 else second / (first + second)


def nuslerp_survey(over: Over, total: int, shared: dict, settings: list[dict]):
    """Coefficients of the two models: two numbers, or two rows (2, columns) with `nuslerp_row_wise`; None by row."""
    t = nuslerp_t(settings)
    if shared["nuslerp_flatten"]:
        products = inner_products(over, origin_vectors)
        lengths = [max(math.sqrt(products[i][i]), 1e-7) for i in (0, 1)]
        cosine = max(-1.0, min(1.0, products[0][1] / (lengths[0] * lengths[1])))
        return (1 - t, t) if 1 - cosine**2 <= PARALLEL else arc(t, cosine)
    if not shared["nuslerp_row_wise"]:
        return None
    parts = over(lambda group: vector_products(group, dim=0))
    return arcs(t, *(sum(part[i] for part in parts) for i in range(3)))


def vector_products(group: Group, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64 `a.a`, `b.b` and `a.b` of the two models' vectors along a dimension, which is kept with size 1."""
    import torch

    a, b = (vector.to(torch.float64) for vector in origin_vectors(group))
    return tuple((x * y).sum(dim, keepdim=True) for x, y in ((a, a), (b, b), (a, b)))


def arcs(t: float, aa: Tensor, bb: Tensor, ab: Tensor) -> tuple[Tensor, Tensor]:
    """`arc` for every vector; linear where they lie on one line."""
    cosine = (ab / (aa.sqrt().clamp(min=1e-7) * bb.sqrt().clamp(min=1e-7))).clamp(-1, 1)
    parallel = 1 - cosine.square() <= PARALLEL
    theta = cosine.masked_fill(parallel, 0).acos()
    first, second = ((1 - t) * theta).sin() / theta.sin(), (t * theta).sin() / theta.sin()
    return first.masked_fill(parallel, 1 - t), second.masked_fill(parallel, t)


def nuslerp_merge(group: Group) -> Tensor:
    """The combination of the two models, by the whole tensor, by column, or by row (the last dimension)."""
    coefficients = group.facts
    if coefficients is None:
        coefficients = arcs(nuslerp_t(group.settings), *vector_products(group, dim=-1))
    if not isinstance(coefficients[0], float | int):
        coefficients = [c.to(group.experts[0].dtype) for c in coefficients]
    return combine(group, coefficients)


SLERP = Method(
    name="slerp",
    summary="spherical interpolation between the base and one model",
    paper="Shoemake 1985",
    needs_base=True,
    parameters=declare(Parameter("t", "float", 0.5, "0 gives the base, 1 the other model", symbol="t")),
    version=2,
    merge=slerp_merge,
    survey=slerp_survey,
    experts=(1, 1),
)
NUSLERP = Method(
    name="nuslerp",
    summary="spherical interpolation between two models, or two deltas where a base is named",
    paper="mergekit",
    needs_base=False,
    takes_base=True,
    parameters=declare(
        WEIGHT,
        Parameter("nuslerp_flatten", "bool", True, "treat a tensor as one vector", symbol="flatten"),
        Parameter(
            "nuslerp_row_wise", "bool", False, "without flatten: interpolate along the first dimension", symbol="row"
        ),
    ),
    version=2,
    merge=nuslerp_merge,
    survey=nuslerp_survey,
    experts=(2, 2),
)
