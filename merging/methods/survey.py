"""Trimming over the whole model, as in the paper of TIES: cuts and a majority sign, found before the first merge."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merging.methods.definition import Group

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ModelTrim:
    """Per expert, the magnitude from which an entry of its delta is kept; and the sign (-1, 0, 1) of a sum of 0."""

    cuts: list[float]
    majority: float

    def trim(self, delta: Tensor, expert: int) -> Tensor:
        return delta * (delta.abs() >= self.cuts[expert])


def survey_model_trim(groups: Callable[[], Iterable[Group]], shared: dict, settings: list[dict]) -> ModelTrim | None:
    """The cut of each expert (its `int(numel * (1 - density))`-th smallest magnitude) and the majority sign.

    Each call of `groups` is a pass over the model's tensors. Exact, without a sort and without the model in memory.
    None unless `trim` is `model`.
    """
    if shared["trim"] != "model":
        return None
    cuts = kth_smallest(groups, [setting["density"] for setting in settings])
    found = ModelTrim(cuts, 0.0)
    balance = 0
    for group in groups():
        deltas = [found.trim(delta, i) for i, delta in enumerate(group.deltas())]
        total = sum(delta * weight for delta, weight in zip(deltas, group.weights(), strict=True))
        balance += signs(total)
    return ModelTrim(cuts, float((balance > 0) - (balance < 0)))


def majority(sign: Tensor) -> float:
    """The sign that most non-zero entries have: 1, -1, or 0 where they balance."""
    balance = signs(sign)
    return float((balance > 0) - (balance < 0))


def signs(tensor: Tensor) -> int:
    """How many more entries are positive than negative."""
    return int((tensor > 0).sum()) - int((tensor < 0).sum())


def kth_smallest(groups: Callable[[], Iterable[Group]], densities: list[float]) -> list[float]:
    """Per expert, the exact k-th smallest magnitude of its delta over the model, by radix passes over 16 bits each.

    The bits of a non-negative float order as its value does, so the histogram of the leading digit names the bucket
    that holds the k-th, and the next pass looks inside that bucket alone. 0 where k is 0: nothing is trimmed.
    """
    import torch

    first = histograms(groups, 0, [0] * len(densities))
    ks = [int(int(counts.sum()) * (1 - density)) for counts, density in zip(first, densities, strict=True)]
    dtype = next(iter(groups())).base.dtype
    ranks, prefixes = list(ks), [0] * len(densities)
    for digit in range(dtype.itemsize // 2):
        found = histograms(groups, digit, prefixes) if digit else first
        for i, counts in enumerate(found):
            below = counts.cumsum(0)
            bucket = int(torch.searchsorted(below, max(ranks[i], 1)))
            ranks[i] -= int(below[bucket - 1]) if bucket else 0
            prefixes[i] = (prefixes[i] << 16) | bucket
    values = [torch.tensor(prefix, dtype=bits_dtype(dtype)).view(dtype).item() for prefix in prefixes]
    return [value if k else 0.0 for value, k in zip(values, ks, strict=True)]


def histograms(groups: Callable[[], Iterable[Group]], digit: int, prefixes: list[int]) -> list[Tensor]:
    """Per expert, int64 counts (65536,) of the `digit`-th 16 bits of its delta's magnitudes, in one pass."""
    counts = None
    for group in groups():
        deltas = group.deltas()
        found = [histogram(d.abs(), digit, prefix) for d, prefix in zip(deltas, prefixes, strict=True)]
        counts = found if counts is None else [a.add_(b) for a, b in zip(counts, found, strict=True)]
    return counts


def bits_dtype(dtype):
    """The integer dtype of a float dtype's width."""
    import torch

    return {4: torch.int32, 8: torch.int64}[dtype.itemsize]


def histogram(magnitude: Tensor, digit: int, prefix: int) -> Tensor:
    """Counts of the `digit`-th 16 bits (0 leads) among the entries whose leading digits are `prefix`."""
    import torch

    bits = magnitude.flatten().view(bits_dtype(magnitude.dtype))
    shift = 16 * (magnitude.dtype.itemsize // 2 - 1 - digit)
    if digit:
        bits = bits[(bits >> (shift + 16)) == prefix]
    return torch.bincount((bits >> shift) & 0xFFFF, minlength=1 << 16).cpu()
