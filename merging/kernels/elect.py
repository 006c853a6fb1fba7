"""The sign election of TIES, and ties itself."""

from __future__ import annotations

import numpy as np

from merging.kernels.tiles import TILE, add, kernel, refuse, scale, scaled_plus_base, subtract, widen
from merging.methods.definition import Group

ZERO, ONE = np.float32(0), np.float32(1)


def ties(group: Group) -> np.ndarray:
    """`merging.methods.ties.merge` of a stored block: float32, of its shape. `group.facts` is its survey's Trimming."""
    out = np.empty(group.base.shape, np.float32)
    found = group.facts
    bounds = np.array([cut.bounds(group.start) for cut in found.cuts], np.float64)
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    bad = trimmed_and_elected(
        group.base.reshape(-1),
        experts,
        bounds[:, 0].astype(np.float32),
        bounds[:, 1].astype(np.int64),
        np.array(found.divisors, np.float32),
        np.array(group.weights(), np.float32),
        np.float32(found.zero_sign),
        group.shared["normalize"],
        np.float32(group.shared["lambda"]),
        out.reshape(-1),
    )
    refuse(bad)
    return out


@kernel
def trimmed_and_elected(base, experts, cuts, lasts, divisors, weights, zero_sign, normalize, scaling, out):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does.

    An entry stays whose magnitude is above its expert's cut, or equals it up to index `last` of the block.
    """
    origin = np.empty(TILE, np.float32)
    deltas = np.empty((len(experts), TILE), np.float32)
    scratch = np.empty((2, TILE), np.float32)
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        b = origin[: end - start]
        if widen(base[start:end], b):
            return len(experts) + 1
        for j in range(len(experts)):
            delta = deltas[j][: end - start]
            if widen(experts[j][start:end], delta):
                return j + 1
            subtract(delta, b)
            trim(delta, cuts[j], min(max(lasts[j] + 1 - start, 0), delta.size))
            if divisors[j] != ONE:
                for i in range(delta.size):
                    delta[i] /= divisors[j]
        elect(deltas, weights, zero_sign, normalize, scratch, out[start:end])
        scaled_plus_base(out[start:end], scaling, b, out[start:end])
    return 0


@kernel
def trim(delta, cut, equal_until):
    """Zero what is below the cut; of what equals it, all from index `equal_until` on."""
    for i in range(equal_until):
        delta[i] = delta[i] if abs(delta[i]) >= cut else ZERO
    for i in range(equal_until, delta.size):
        delta[i] = delta[i] if abs(delta[i]) > cut else ZERO


@kernel
def elect(deltas, weights, zero_sign, normalize, scratch, mixed):
    """`merging.methods.ties.elect` before lambda and base: the mean or sum of the weighted deltas that agree.

    `deltas` are tiles, of which the first `mixed.size` count. [j][:n], not [j, :n]: numba then knows it is contiguous.
    """
    sign, divisor = scratch[0][: mixed.size], scratch[1][: mixed.size]
    sign[:] = ZERO
    mixed[:] = ZERO
    divisor[:] = ZERO
    for j in range(len(weights)):
        if weights[j] != ONE:
            scale(deltas[j][: mixed.size], weights[j])
        add(sign, deltas[j][: mixed.size])
    for i in range(sign.size):
        sign[i] = ONE if sign[i] > ZERO else (-ONE if sign[i] < ZERO else zero_sign)
    for j in range(len(weights)):
        agree(deltas[j][: mixed.size], sign, weights[j], mixed, divisor)
    for i in range(mixed.size):
        mixed[i] *= sign[i]
    if normalize:
        for i in range(mixed.size):
            mixed[i] /= divisor[i] if divisor[i] != ZERO else ONE


@kernel
def agree(delta, sign, weight, mixed, divisor):
    """Add the magnitude of what carries the elected sign, and its weight."""
    for i in range(delta.size):
        along = delta[i] * sign[i]
        mixed[i] += along if along > ZERO else ZERO
        divisor[i] += weight if along > ZERO else ZERO
