"""The search for the cuts of experts' deltas, `merging.methods.selection`'s, over blocks as they are stored.

Between low and high a bracket holds either few elements, which are collected, or few distinct values: the deltas of
bfloat16 weights take few. Then it is enough to count what lies above and at each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from merging.kernels.tiles import TILE, kernel, refuse, subtract, widen
from merging.methods.definition import Group
from merging.methods.selection import Bracket, Cut

RUN = 128  # elements that are searched one by one where any of them lies within the bracket
FEW = 4  # values in a sample that are counted instead of collecting what lies between them
SMALLEST = np.float32(2.0**-149)  # zeros never count


def close(stored: Callable[..., list], brackets: list[Bracket]) -> None:
    """Find the cut of every bracket that is open, one for each expert."""
    searches = [Search(bracket) for bracket in brackets]
    while any(bracket.open for bracket in brackets):
        levels = np.array([search.levels() for search in searches], np.float32)
        bounds = np.array([search.bounds() for search in searches], np.float32)
        found = stored(partial(look, levels=levels, bounds=bounds))
        for i, search in enumerate(searches):
            if search.bracket.open:
                search.learn([part[i] for part in found])
                search.locate(stored, i)


class Search:
    """One bracket's search: by counting at `few` values, or by collecting between two bounds."""

    def __init__(self, bracket: Bracket):
        self.bracket = bracket
        self._start()

    def _start(self) -> None:
        bracket = self.bracket
        self.low, self.high = bracket.low, bracket.high
        self.few = bracket.values(FEW) if bracket.open else None
        self.equals = None

    def levels(self) -> list[float]:
        """The values to count at; infinity where there are none."""
        few = [] if self.few is None or not self.bracket.open else list(self.few)
        return few + [math.inf] * (FEW - len(few))

    def bounds(self) -> tuple[float, float]:
        """What to collect; nothing where values are counted."""
        if self.few is not None or not self.bracket.open:
            return math.inf, math.inf
        return max(self.low, SMALLEST), self.high

    def learn(self, parts: list[tuple]) -> None:
        """Close the bracket with what the blocks hold, or narrow or widen it."""
        bracket = self.bracket
        if self.few is None:
            above, values = sum(part[0] for part in parts), np.concatenate([part[1] for part in parts])
            wanted = bracket.count - above
            if not 1 <= wanted <= len(values):
                bracket.missed(wanted > len(values))
                self._start()
                return
            value = np.partition(values, len(values) - wanted)[len(values) - wanted]
            room = wanted - int(np.count_nonzero(values > value))
            self._found(value, room, [int(np.count_nonzero(part[1] == value)) for part in parts])
            return
        above, at_least = (np.array([part[i] for part in parts]) for i in (2, 3))
        over, within = above.sum(0), at_least.sum(0)
        for i, value in enumerate(self.few):
            if over[i] < bracket.count <= within[i]:
                self._found(value, bracket.count - over[i], at_least[:, i] - above[:, i])
                return
        self._between(within)

    def _between(self, within: np.ndarray) -> None:
        """The cut lies between two of the values, or outside all of them."""
        reached = [i for i in range(len(self.few)) if within[i] >= self.bracket.count]
        if not reached or reached[-1] == len(self.few) - 1:
            self.bracket.missed(not reached)
            self._start()
            return
        low, high = self.few[reached[-1]], self.few[reached[-1] + 1]
        self.low = float(np.nextafter(low, np.float32(np.inf)))
        self.high = float(np.nextafter(high, np.float32(0)))
        self.few = None

    def _found(self, value: np.float32, room: int, equals: list[int]) -> None:
        self.bracket.cut = Cut(float(value))
        self.equals = None if room == sum(equals) else (room, np.cumsum(equals))

    def locate(self, stored: Callable[..., list], expert: int) -> None:
        """Find up to which index the equals of the cut are kept, where not all are: it lies in one block."""
        if not self.equals:
            return
        room, until = self.equals
        block = int(np.searchsorted(until, room))
        before = int(until[block - 1]) if block else 0
        [indices] = stored(partial(equals, expert=expert, value=self.bracket.cut.value), only=block)
        self.bracket.cut = Cut(self.bracket.cut.value, int(indices[room - before - 1]))


def look(group: Group, levels: np.ndarray, bounds: np.ndarray) -> list[tuple]:
    """Per expert of a stored block, of the magnitudes of its delta: how many lie above its upper bound, those between
    the bounds, how many lie above each of its levels, and how many above or at it."""
    n, count = group.base.size, len(group.experts)
    values = np.empty((count, n + 1), np.float32)
    above, found = np.zeros(count, np.int64), np.zeros(count, np.int64)
    over, within = np.zeros(levels.shape, np.int64), np.zeros(levels.shape, np.int64)
    experts = tuple(expert.reshape(-1) for expert in group.experts)
    arguments = levels, bounds, above, values, found, over, within
    refuse(count_and_collect(group.base.reshape(-1), experts, *arguments))
    return [(int(above[j]), values[j, : found[j]].copy(), over[j], within[j]) for j in range(count)]


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
def count_and_collect(base, experts, levels, bounds, above, values, found, over, within):
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
            for k in range(levels.shape[1]):
                if levels[j, k] < np.inf:
                    over[j, k] += count_above(delta, levels[j, k])
                    within[j, k] += count_at_least(delta, levels[j, k])
            low, high = bounds[j]
            if low < np.inf:
                above[j] += count_above(delta, high)
                for first in range(0, delta.size, RUN):
                    run = delta[first : first + RUN]
                    if count_within(run, low, high):
                        found[j] = collect(run, low, high, values[j], found[j])
    return 0


@kernel
def count_above(delta, high):
    count = np.uint32(0)
    for i in range(delta.size):
        count = np.uint32(count + np.uint32(abs(delta[i]) > high))
    return count


@kernel
def count_at_least(delta, low):
    count = np.uint32(0)
    for i in range(delta.size):
        count = np.uint32(count + np.uint32(abs(delta[i]) >= low))
    return count


@kernel
def count_within(delta, low, high):
    count = np.uint32(0)
    for i in range(delta.size):
        magnitude = abs(delta[i])
        count = np.uint32(count + np.uint32((magnitude >= low) & (magnitude <= high)))
    return count


@kernel
def collect(delta, low, high, values, found):
    """Append what lies within; every value is written, and kept by moving on: a branch would be mispredicted."""
    for i in range(delta.size):
        magnitude = abs(delta[i])
        values[found] = magnitude
        found += np.int64((magnitude >= low) & (magnitude <= high))
    return found
