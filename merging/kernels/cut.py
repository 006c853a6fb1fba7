"""The search for the cuts of experts' deltas, `merging.methods.selection`'s, over blocks as they are stored.

The deltas of bfloat16 weights take few values, so much of what lies within a bracket is equal. The commonest values are
only counted, the rest within the bracket is collected.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from merging.kernels.tiles import TILE, kernel, refuse, subtract, widen
from merging.methods.definition import Group
from merging.methods.selection import Bracket, Cut

RUN = 64  # elements that are searched one by one where any of them lies within the bracket
COMMON = 4  # values of a bracket that are counted
SMALLEST = np.float32(2.0**-149)  # zeros never count


def close(stored: Callable[..., list], brackets: list[Bracket]) -> None:
    """Find the cut of every bracket that is open, one for each expert."""
    while any(bracket.open for bracket in brackets):
        searches = [Search.of(bracket) for bracket in brackets]
        found = stored(partial(look, searches=searches))
        for expert, search in enumerate(searches):
            if search.bracket.open:
                search.learn([part[expert] for part in found], stored, expert)


@dataclass(frozen=True)
class Search:
    """What a pass looks for: magnitudes in [low, high] are collected but for the `common` ones, which are counted."""

    bracket: Bracket
    low: float
    high: float
    common: np.ndarray

    @classmethod
    def of(cls, bracket: Bracket) -> Search:
        if not bracket.open:
            return cls(bracket, math.inf, -math.inf, np.empty(0, np.float32))
        return cls(bracket, max(bracket.low, SMALLEST), bracket.high, bracket.common(COMMON))

    def learn(self, parts: list[tuple], stored: Callable[..., list], expert: int) -> None:
        """Close the bracket with what the blocks hold, or widen it."""
        values, counts = np.concatenate([part[1] for part in parts]), np.array([part[2] for part in parts])
        wanted = self.bracket.count - sum(part[0] for part in parts)
        sizes = counts.sum(0)[: len(self.common)]
        if not 1 <= wanted <= len(values) + sizes.sum():
            self.bracket.missed(wanted > 0)
            return
        value, room = kth_largest(values, self.common, sizes, wanted)
        common = np.flatnonzero(self.common == value)
        equal = counts[:, common[0]] if len(common) else [int(np.count_nonzero(part[1] == value)) for part in parts]
        self.bracket.cut = Cut(float(value), math.inf if room == sum(equal) else -1)
        if room < sum(equal):
            until = np.cumsum(equal)
            block = int(np.searchsorted(until, room))
            [indices] = stored(partial(equals, expert=expert, value=value), only=block)
            self.bracket.cut = Cut(float(value), int(indices[room - 1 - (until[block] - equal[block])]))


def kth_largest(values: np.ndarray, common: np.ndarray, sizes: np.ndarray, k: int) -> tuple[np.float32, int]:
    """The k-th largest (from 1) of `values` and of each `common` value (descending) `sizes` times; and how many of its
    equals are among the k."""
    for value, size in zip(common, sizes, strict=True):
        greater = int(np.count_nonzero(values > value))
        if k <= greater:
            break
        if k <= greater + size:
            return value, k - greater
        k -= int(size)
    value = np.partition(values, len(values) - k)[len(values) - k]
    return value, k - int(np.count_nonzero(values > value))


def look(group: Group, searches: list[Search]) -> list[tuple]:
    """Per expert of a stored block, of the magnitudes of its delta: how many lie above its bracket, those within that
    are not common, and how many are equal to each common value."""
    n, count = group.base.size, len(group.experts)
    common = np.full((count, COMMON), np.nan, np.float32)  # equal to nothing
    for j, search in enumerate(searches):
        common[j, : len(search.common)] = search.common
    bounds = np.array([(search.low, search.high) for search in searches], np.float32)
    values = np.empty((count, n + 1), np.float32)
    above, found, equal = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(common.shape, np.int64)
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    refuse(count_and_collect(group.base.reshape(-1), experts, bounds, common, above, values, found, equal))
    return [(int(above[j]), values[j, : found[j]].copy(), equal[j]) for j in range(count)]


def equals(group: Group, expert: int, value: float) -> np.ndarray:
    """The indices of a stored block's elements at which an expert's delta has a magnitude, in order."""
    base, moved = (np.empty(group.base.size, np.float32) for _ in range(2))
    widen_all(group.base.reshape(-1), base)
    widen_all(group.experts[expert].reshape(-1), moved)
    return np.flatnonzero(np.abs(moved - base) == np.float32(value)) + group.start


@kernel
def widen_all(stored, wide):
    widen(stored, wide)


@kernel
def count_and_collect(base, experts, bounds, common, above, values, found, equal):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    origin, wide = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, base.size, TILE):
        end = min(start + TILE, base.size)
        b = origin[: end - start]
        if widen(base[start:end], b):
            return len(experts) + 1
        for j in range(len(experts)):
            low, high = bounds[j]
            delta = wide[: end - start]
            if widen(experts[j][start:end], delta):
                return j + 1
            if low > high:
                continue
            subtract(delta, b)
            above[j] += count_above(delta, high)
            for k in range(common.shape[1]):
                if common[j, k] > 0:
                    equal[j, k] += count_equal(delta, common[j, k])
            for first in range(0, delta.size, RUN):
                run = delta[first : first + RUN]
                if count_rest(run, low, high, common[j]):
                    found[j] = collect(run, low, high, common[j], values[j], found[j])
    return 0


@kernel
def count_above(delta, high):
    count = np.uint32(0)
    for i in range(delta.size):
        count = np.uint32(count + np.uint32(abs(delta[i]) > high))
    return count


@kernel
def count_equal(delta, value):
    count = np.uint32(0)
    for i in range(delta.size):
        count = np.uint32(count + np.uint32(abs(delta[i]) == value))
    return count


@kernel
def count_rest(delta, low, high, common):
    """How many lie within the bracket and are not common."""
    count = np.uint32(0)
    one, two, three, four = common[0], common[1], common[2], common[3]
    for i in range(delta.size):
        size = abs(delta[i])
        within = (size >= low) & (size <= high) & (size != one) & (size != two) & (size != three) & (size != four)
        count = np.uint32(count + np.uint32(within))
    return count


@kernel
def collect(delta, low, high, common, values, found):
    """Append what lies within; every value is written, and kept by moving on: a branch would be mispredicted."""
    one, two, three, four = common[0], common[1], common[2], common[3]
    for i in range(delta.size):
        size = abs(delta[i])
        values[found] = size
        within = (size >= low) & (size <= high) & (size != one) & (size != two) & (size != three) & (size != four)
        found += np.int64(within)
    return found
