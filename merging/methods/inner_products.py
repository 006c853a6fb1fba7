"""Linear combinations whose coefficients depend on the vectors' inner products alone: one pass finds those, in float64.

A tensor counts as one vector. A second pass adds up.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from merging.methods.definition import Group, Over

if TYPE_CHECKING:
    from torch import Tensor


def inner_products(over: Over, vectors) -> list[list[float]]:
    """The float64 matrix of inner products of `vectors(group)`, tensors of one shape, over all blocks."""

    def gram(group: Group) -> list[list[float]]:
        import torch

        found = [vector.to(torch.float64) for vector in vectors(group)]
        return [[float((a * b).sum()) for b in found] for a in found]

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


def row_product(coefficients: list[float], products: list[list[float]], j: int) -> float:
    """The inner product of a combination with vector j."""
    return math.fsum(c * row[j] for c, row in zip(coefficients, products, strict=True))


def quadratic(coefficients: list[float], products: list[list[float]]) -> float:
    """The squared length of a combination."""
    return math.fsum(c * row_product(coefficients, products, j) for j, c in enumerate(coefficients))
