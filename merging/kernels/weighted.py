"""linear and task_arithmetic."""

from __future__ import annotations

import numpy as np

from merging.kernels.tiles import TILE, add, kernel, refuse, scale, scaled_plus_base, subtract, widen
from merging.methods.definition import Group

ONE = np.float32(1)


def linear(group: Group) -> np.ndarray:
    """`merging.methods.linear.merge` of a stored block: float32, of its shape."""
    out = np.empty(group.experts[0].shape, np.float32)
    weights = group.weights()
    divisor = sum(weights) if group.shared["normalize"] else 1.0
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    refuse(weighted_mean(experts, np.array(weights, np.float32), np.float32(divisor), out.reshape(-1)))
    return out


@kernel
def weighted_mean(experts, weights, divisor, out):
    """The first expert that holds NaN or Inf, counted from 1; 0 where none does."""
    wide = np.empty(TILE, np.float32)
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        total = out[start:end]
        for j in range(len(experts)):
            tile = total if j == 0 else wide[: end - start]
            if widen(experts[j][start:end], tile):
                return j + 1
            if weights[j] != ONE:
                scale(tile, weights[j])
            if j:
                add(total, tile)
        if divisor != ONE:
            for i in range(total.size):
                total[i] /= divisor
    return 0


def task_arithmetic(group: Group) -> np.ndarray:
    """`merging.methods.task_arithmetic.merge` of a stored block: float32, of its shape."""
    out = np.empty(group.base.shape, np.float32)
    weights = group.weights()
    total = sum(weights)
    divisor = total if group.shared["normalize"] and abs(total) >= 1e-8 else 1.0
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    numbers = np.array(weights, np.float32), np.float32(divisor), np.float32(group.shared["lambda"])
    refuse(weighted_deltas(group.base.reshape(-1), experts, *numbers, out.reshape(-1)))
    return out


@kernel
def weighted_deltas(base, experts, weights, divisor, scaling, out):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    wide, wide_base = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        mixed, origin = out[start:end], wide_base[: end - start]
        if widen(base[start:end], origin):
            return len(experts) + 1
        for j in range(len(experts)):
            tile = mixed if j == 0 else wide[: end - start]
            if widen(experts[j][start:end], tile):
                return j + 1
            subtract(tile, origin)
            if weights[j] != ONE:
                scale(tile, weights[j])
            if j:
                add(mixed, tile)
        if divisor != ONE:
            for i in range(mixed.size):
                mixed[i] /= divisor
        scaled_plus_base(mixed, scaling, origin, mixed)
    return 0
