"""The k-th largest magnitude of a tensor or of a model, exactly, without sorting it and without holding it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from merging.methods.definition import RUN, Group, Over, runs

if TYPE_CHECKING:
    from torch import Tensor

SAMPLE = 1 << 16  # elements looked at to guess where the cut lies
LARGEST_SAMPLE = 1 << 23


@dataclass(frozen=True)
class Cut:
    """What is kept: magnitudes above `value`, and those equal to it up to index `last` of the flattened tensor."""

    value: float
    last: float = math.inf

    def keep(self, delta: Tensor, start: int = 0) -> Tensor:
        """A delta (a block whose first element has index `start`) with all else set to zero."""
        if self.value == 0:
            return delta
        if start <= self.last < start + delta.numel() - 1:
            return self._keep_within(delta, int(self.last) - start)
        # hardshrink keeps what is strictly greater than its bound
        below = math.nextafter if delta.dtype.itemsize == 8 else nextafter32
        return delta.hardshrink(below(self.value, 0.0) if self.last >= start else self.value)

    def bounds(self, start: int) -> tuple[float, int]:
        """The cut's value, and up to which index of a block that begins at `start` its equals are kept."""
        return self.value, int(min(max(self.last - start, -1), 1 << 62))

    def _keep_within(self, delta: Tensor, last: int) -> Tensor:
        flat = delta.flatten()
        kept = flat.abs() > self.value
        kept[: last + 1] |= flat[: last + 1].abs() == self.value
        return (flat * kept).reshape(delta.shape)


NOTHING = Cut(math.inf, -1)
EVERYTHING = Cut(0.0)


def nextafter32(value: float, towards: float) -> float:
    import numpy

    return float(numpy.nextafter(numpy.float32(value), numpy.float32(towards)))


def largest(
    over: Over,
    magnitudes: Callable[[Group], list[Tensor]],
    counts: list[int],
    total: int,
    by_row: bool = False,
    kernel: str | None = None,
) -> list[Cut]:
    """For each of several series of `total` magnitudes, the cut that keeps its `counts[i]` largest.

    `magnitudes` maps a block to the series' numbers >= 0; `by_row` says that it needs whole rows to do so. `kernel`
    names what counts in stored blocks faster ("module:function", see `merging.kernels.cut`).

    Among equal magnitudes at the cut those of the lowest index stay. A sample brackets each cut; one pass then counts
    what lies above the bracket and collects the little within it. A bracket that missed is widened.
    """
    brackets = [Bracket(count, total) for count in counts]
    if any(bracket.open for bracket in brackets) and total > SAMPLE:
        size = min(max(SAMPLE, total // 64), LARGEST_SAMPLE)  # a larger whole is worth a narrower bracket
        stride = (total * RUN // size) | 1  # odd, so that it does not walk down a few columns
        if by_row:
            parts = over(lambda group: [to_numpy(runs(m, stride)) for m in magnitudes(group)])
        else:
            parts = over(lambda group: [to_numpy(m) for m in magnitudes(group)], stride)
        for i, bracket in enumerate(brackets):
            bracket.sampled([part[i] for part in parts])
    stored = getattr(over, "stored", None)
    if kernel and stored:
        resolve_name(kernel)(stored, brackets)
    while any(bracket.open for bracket in brackets):

        def look(group: Group) -> list:
            return [
                bracket.look(m, group.start) if bracket.open else None
                for m, bracket in zip(magnitudes(group), brackets, strict=True)
            ]

        found = over(look)
        for i, bracket in enumerate(brackets):
            if bracket.open:
                bracket.close([part[i] for part in found])
    return [bracket.cut for bracket in brackets]


def to_numpy(tensor: Tensor):
    """A flat array; on a CPU without a copy. numpy compares and picks several times as fast as torch there."""
    return tensor.flatten().cpu().numpy()


class Bracket:
    """The search for one cut: between `low` and `high`, both included."""

    def __init__(self, count: int, total: int):
        self.count, self.total = count, total
        self.low, self.high = 0.0, math.inf
        self.cut = EVERYTHING if count >= total else NOTHING if count <= 0 else None
        self.sample, self.margin = None, 3.0

    @property
    def open(self) -> bool:
        return self.cut is None

    def sampled(self, parts: list) -> None:
        """Take a sample, each part a series of runs of neighbours."""
        import numpy

        self._runs = [part[: len(part) // RUN * RUN].reshape(-1, RUN) for part in parts]
        self.sample = numpy.concatenate(parts)
        self._bracket()

    def _bracket(self) -> None:
        """Order statistics of the sample `margin` standard deviations to either side of the wanted one."""
        size, share = len(self.sample), self.count / self.total
        middle = size * (1 - share)
        spread = self.margin * size * self._deviation(self._ranked(int(middle))[0], share) + 2
        low, high = math.floor(middle - spread), math.ceil(middle + spread)
        lowest, highest = self._ranked(low, high)
        self.low = float(lowest) if low >= 0 else 0.0
        self.high = float(highest) if high < size else math.inf

    def _ranked(self, *ranks: int) -> list[float]:
        """Order statistics of the sample, the nearest there is to each rank."""
        found = [min(max(rank, 0), len(self.sample) - 1) for rank in ranks]
        self.sample.partition(sorted(set(found)))
        return [self.sample[rank] for rank in found]

    def _deviation(self, value: float, share: float) -> float:
        """The standard deviation of the share of the sample above a value. Neighbours are alike, so runs are what
        varies; never less than that of independent elements."""
        import numpy

        independent = math.sqrt(share * (1 - share) / len(self.sample))
        shares = numpy.concatenate([(runs > value).mean(axis=1) for runs in self._runs])
        return max(independent, float(shares.std()) / math.sqrt(len(shares))) if len(shares) > 1 else independent

    def common(self, most: int):
        """The up to `most` commonest values of the sample within the bracket, descending; rare ones are left out."""
        import numpy

        if self.sample is None:
            return numpy.empty(0, numpy.float32)
        within = self.sample[(self.sample >= max(self.low, 1e-45)) & (self.sample <= self.high)]
        values, counts = numpy.unique(within, return_counts=True)
        often = numpy.argsort(-counts, kind="stable")[:most]
        return numpy.sort(values[often[counts[often] > len(within) / 50]])[::-1]

    def look(self, magnitude, start: int):
        """How many lie above the bracket, and the values and indices of those within. Zeros never count."""
        import numpy

        if magnitude.device.type != "cpu":
            flat = magnitude.flatten()
            within = ((flat <= self.high) & ((flat >= self.low) if self.low else flat > 0)).nonzero().flatten()
            return int((flat > self.high).sum()), to_numpy(flat[within]), to_numpy(within) + start
        magnitude = to_numpy(magnitude)
        above = int(numpy.count_nonzero(magnitude > self.high))
        within = numpy.flatnonzero((magnitude <= self.high) & ((magnitude >= self.low) if self.low else magnitude > 0))
        return above, magnitude[within], within + start

    def close(self, parts: list) -> None:
        """Find the cut among what was collected, or widen the bracket."""
        import numpy

        above = sum(part[0] for part in parts)
        values = numpy.concatenate([part[1] for part in parts])
        wanted = self.count - above
        if 1 <= wanted <= len(values):
            value = numpy.partition(values, len(values) - wanted)[len(values) - wanted]
            room = wanted - int(numpy.count_nonzero(values > value))
            indices = numpy.concatenate([part[2][part[1] == value] for part in parts])
            self.cut = Cut(float(value), math.inf if room == len(indices) else int(numpy.sort(indices)[room - 1]))
        else:
            self.missed(wanted > len(values))

    def missed(self, below: bool) -> None:
        """The cut lies outside the bracket, below it or above."""
        if below and not self.low:
            self.cut = EVERYTHING  # fewer entries than wanted are not zero
        else:
            self.margin *= 4
            self._bracket()
