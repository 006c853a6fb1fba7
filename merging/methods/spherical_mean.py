"""Means of several models on the sphere: multislerp and the Karcher mean."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merging.errors import InputError
from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.methods.inner_products import combine, inner_products, origin_vectors, quadratic, row_product
from merging.methods.linear import WEIGHT, cancel

if TYPE_CHECKING:
    from torch import Tensor


OPPOSITE = 1e-6  # radians short of half a turn: from there all ways to a vector are as long, and it counts for none


def check(shared: dict, settings: list[dict]) -> str | None:
    """A mean of several needs weights that do not sum to 0."""
    weights = [setting["weight"] for setting in settings]
    if len(weights) > 1 and shared["normalize_weights"] and cancel(weights):
        shown = ", ".join(f"{weight:g}" for weight in weights)
        return f"the weights sum to 0 ({shown}); change them, or set normalize_weights to false"
    return None


def multislerp_survey(over: Over, total: int, shared: dict, settings: list[dict]) -> list[float]:
    """Coefficients: the weighted mean of the directions on the sphere, at the weighted mean length."""
    name, count = over(lambda group: group.name)[0], len(settings)
    if count == 1:
        return [1.0]
    weights = [setting["weight"] for setting in settings]
    if shared["normalize_weights"]:
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


def multislerp_merge(group: Group) -> Tensor:
    """The linear combination the survey found. Shape and dtype of the experts."""
    return combine(group, group.facts)


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
            if tol <= theta <= math.pi - OPPOSITE:
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
        merged.add_(expert * coefficient)  # not alpha, which rounds once on some machines only
    return merged


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
    version=2,
    merge=multislerp_merge,
    survey=multislerp_survey,
    check=check,
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
    version=2,
    merge=karcher_merge,
    survey=karcher_survey,
)
