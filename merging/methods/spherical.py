"""Interpolation on the sphere: slerp, nuslerp, multislerp and the Karcher mean.

Each gives a linear combination of its inputs whose coefficients depend on their inner products alone, so one pass
finds those (in float64) and a second one adds up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merging.errors import InputError
from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.linear import WEIGHT

if TYPE_CHECKING:
    from torch import Tensor


def inner_products(over: Over, vectors) -> list[list[float]]:
    """The float64 matrix of inner products of `vectors(group)`, tensors of one shape, over all blocks."""

    def gram(group: Group) -> list[list[float]]:
        import torch

        found = vectors(group)
        return [[float((a * b).sum(dtype=torch.float64)) for b in found] for a in found]

    parts = over(gram)
    size = range(len(parts[0]))
    return [[math.fsum(part[i][j] for part in parts) for j in size] for i in size]


def origin_vectors(group: Group) -> list[Tensor]:
    """The experts as seen from the base where there is one, else from 0."""
    return group.experts if group.base is None else group.deltas()


def combine(group: Group, coefficients) -> Tensor:
    """The base, where there is one, plus the sum of the coefficients times the vectors."""
    vectors = origin_vectors(group)
    merged = vectors[0] * coefficients[0]
    for vector, coefficient in zip(vectors[1:], coefficients[1:], strict=True):
        merged.add_(vector * coefficient)
    return merged if group.base is None else merged.add_(group.base)


def merge(group: Group) -> Tensor:
    """The linear combination the survey found. Shape and dtype of the experts."""
    return combine(group, group.facts)


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
        return (1 - t, t) if 1 - cosine**2 <= 1e-16 else arc(t, cosine)
    if not shared["nuslerp_row_wise"]:
        return None
    parts = over(lambda group: vector_products(group, dim=0))
    return arcs(t, *(sum(part[i] for part in parts) for i in range(3)))


def vector_products(group: Group, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """float64 `a.a`, `b.b` and `a.b` of the two models' vectors along a dimension, which is kept with size 1."""
    import torch

    a, b = origin_vectors(group)
    return tuple((x * y).sum(dim, keepdim=True, dtype=torch.float64) for x, y in ((a, a), (b, b), (a, b)))


def arcs(t: float, aa: Tensor, bb: Tensor, ab: Tensor) -> tuple[Tensor, Tensor]:
    """`arc` for every vector; linear where they are parallel."""
    cosine = (ab / (aa.sqrt().clamp(min=1e-7) * bb.sqrt().clamp(min=1e-7))).clamp(-1, 1)
    parallel = 1 - cosine.square() <= 1e-16
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


def multislerp_survey(over: Over, total: int, shared: dict, settings: list[dict]) -> list[float]:
    """Coefficients: the weighted mean of the directions on the sphere, at the weighted mean length."""
    name, count = over(lambda group: group.name)[0], len(settings)
    if count == 1:
        return [1.0]
    weights = [setting["weight"] for setting in settings]
    if shared["normalize_weights"]:
        if abs(sum(weights)) < 1e-12:
            raise InputError(f"multislerp: the weights sum to 0 and cannot be normalised (tensor {name})")
        weights = [weight / sum(weights) for weight in weights]
    products = inner_products(over, origin_vectors)
    eps = shared["eps"]
    lengths = [math.sqrt(products[i][i]) for i in range(count)]
    if not any(lengths):
        return weights
    directed = [weight / (length + eps) for weight, length in zip(weights, lengths, strict=True)]
    length = math.sqrt(max(quadratic(directed, products), 0.0))
    if length < eps:
        if count == 2:
            return weights
        raise InputError(f"multislerp: the models' directions cancel in tensor {name}; change the weights")
    mean = [value / length for value in directed]
    dots = [row_product(mean, products, j) / (lengths[j] + eps) for j in range(count)]
    along = math.fsum(weight * dot for weight, dot in zip(weights, dots, strict=True))
    tangent = [d - along * m for d, m in zip(directed, mean, strict=True)]
    angle = math.sqrt(max(quadratic(tangent, products), 0.0)) + eps
    scale = math.fsum(weight * length for weight, length in zip(weights, lengths, strict=True))
    turn = math.sin(angle) / angle
    return [scale * (m * math.cos(angle) + t * turn) for m, t in zip(mean, tangent, strict=True)]


def row_product(coefficients: list[float], products: list[list[float]], j: int) -> float:
    """The inner product of a combination with vector j."""
    return math.fsum(c * row[j] for c, row in zip(coefficients, products, strict=True))


def quadratic(coefficients: list[float], products: list[list[float]]) -> float:
    """The squared length of a combination."""
    return math.fsum(c * row_product(coefficients, products, j) for j, c in enumerate(coefficients))


def karcher_survey(over: Over, total: int, shared: dict, settings: list[dict]) -> list[float]:
    """Coefficients: the Karcher mean of the directions, found by gradient steps on the sphere, at the mean length."""
    count, tol = len(settings), shared["tol"]
    if count == 1:
        return [1.0]
    products = inner_products(over, lambda group: group.experts)
    lengths = [math.sqrt(products[i][i]) for i in range(count)]
    valid = [i for i, length in enumerate(lengths) if length > tol]
    if not valid:
        return [0.0] * count
    share = 1 / len(valid)
    mean = [share / lengths[i] if i in valid else 0.0 for i in range(count)]
    length = math.sqrt(max(quadratic(mean, products), 0.0))
    if length < tol:
        mean = [1 / lengths[i] if i == valid[0] else 0.0 for i in range(count)]
    else:
        mean = [value / length for value in mean]
    for _ in range(shared["max_iter"]):
        tangent = [0.0] * count
        for i in valid:
            dot = max(-1.0, min(1.0, row_product(mean, products, i) / lengths[i]))
            theta = math.acos(dot)
            if theta >= tol:
                step = share * theta / math.sin(theta)
                tangent = [value - step * dot * m for value, m in zip(tangent, mean, strict=True)]
                tangent[i] += step / lengths[i]
        length = math.sqrt(max(quadratic(tangent, products), 0.0))
        if length < tol:
            break
        mean = [math.cos(length) * m + math.sin(length) / length * t for m, t in zip(mean, tangent, strict=True)]
        length = math.sqrt(max(quadratic(mean, products), 0.0))
        mean = [value / length for value in mean] if length > tol else mean
    scale = math.fsum(lengths) / count
    return [scale * value for value in mean]


def karcher_merge(group: Group) -> Tensor:
    """The linear combination of the models themselves: a base is none of them unless it is listed."""
    merged = group.experts[0] * group.facts[0]
    for expert, coefficient in zip(group.experts[1:], group.facts[1:], strict=True):
        merged.add_(expert, alpha=coefficient)
    return merged


SLERP = Method(
    name="slerp",
    summary="spherical interpolation between the base and one model",
    paper="Shoemake 1985",
    needs_base=True,
    parameters=declare(Parameter("t", "float", 0.5, "0 gives the base, 1 the other model", symbol="t")),
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
    merge=nuslerp_merge,
    survey=nuslerp_survey,
    experts=(2, 2),
)
MULTISLERP = Method(
    name="multislerp",
    summary="the mean of several models on the sphere, seen from the base where one is named",
    paper="goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    needs_base=False,
    takes_base=True,
    parameters=declare(
        WEIGHT,
        Parameter("normalize_weights", "bool", True, "divide the weights by their sum", symbol="norm"),
        Parameter("eps", "float", 1e-8, "added to lengths that divide", low=0),
    ),
    merge=merge,
    survey=multislerp_survey,
)
KARCHER = Method(
    name="karcher",
    summary="the Karcher (Riemannian) mean of several models' directions",
    paper="arXiv 2603.04972",
    needs_base=False,
    parameters=declare(
        Parameter("max_iter", "int", 10, "most steps towards the mean", low=0, high=10_000),
        Parameter("tol", "float", 1e-5, "a step shorter than this is the last", low=0),
    ),
    merge=karcher_merge,
    survey=karcher_survey,
)
