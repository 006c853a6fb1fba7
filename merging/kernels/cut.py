"""The look at the experts' deltas that `merging.methods.selection` takes to find where a trim cuts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merging.kernels.tiles import TILE, kernel, refuse, subtract, widen
from merging.methods.definition import Group

RUN = 128  # elements that are searched one by one where any of them lies within the bracket


def look(group: Group, lows: Sequence[float], highs: Sequence[float]) -> list[tuple]:
    """Per expert of a stored block: how many magnitudes of its delta lie above `high`, and values and indices of those
    in [low, high]."""
    n, count = group.base.size, len(group.experts)
    values = np.empty((count, n + 1), np.float32)
    indices = np.empty((count, n + 1), np.int32)
    above, found = np.zeros(count, np.int64), np.zeros(count, np.int64)
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    bounds = np.array(lows, np.float32), np.array(highs, np.float32)
    refuse(count_and_collect(group.base.reshape(-1), experts, *bounds, above, found, values, indices))
    return [
        (int(above[j]), values[j, : found[j]].copy(), indices[j, : found[j]].astype(np.int64) + group.start)
        for j in range(count)
    ]


@kernel
def count_and_collect(base, experts, lows, highs, above, found, values, indices):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    origin, wide = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, base.size, TILE):
        end = min(start + TILE, base.size)
        b = origin[: end - start]
        if widen(base[start:end], b):
            return len(experts) + 1
        for j in range(len(experts)):
            delta = wide[: end - start]
            if widen(experts[j][start:end], delta):
                return j + 1
            subtract(delta, b)
            above[j] += count_above(delta, highs[j])
            for first in range(0, delta.size, RUN):
                run = delta[first : first + RUN]
                if count_within(run, lows[j], highs[j]):
                    found[j] = collect(run, lows[j], highs[j], start + first, values[j], indices[j], found[j])
    return 0


@kernel
def count_above(delta, high):
    count = np.uint32(0)
    for i in range(delta.size):
        count = np.uint32(count + np.uint32(abs(delta[i]) > high))
    return count


@kernel
def count_within(delta, low, high):
    count = np.uint32(0)
    for i in range(delta.size):
        magnitude = abs(delta[i])
        count = np.uint32(count + np.uint32((magnitude >= low) & (magnitude <= high)))
    return count


@kernel
def collect(delta, low, high, start, values, indices, found):
    """Append what lies within; every value is written, and kept by moving on: a branch would be mispredicted."""
    for i in range(delta.size):
        magnitude = abs(delta[i])
        values[found] = magnitude
        indices[found] = start + i
        found += np.int64((magnitude >= low) & (magnitude <= high))
    return found
