"""How much shorter one model's responses are than another's, over several benchmarks (arXiv 2505.14009)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from merging.errors import InputError


def length_change(lengths: Sequence[float], reference: Sequence[float]) -> float:
    """Mean over benchmarks of `length / reference length - 1`: -0.5 for half as long, 0 for the reference itself.

    `lengths` and `reference` hold a benchmark's mean response length in tokens each, in the same order; each model's
    are counted with its own tokenizer. The published -55.3 % (ACM-TIES, 7B) is this mean of ratios: it weighs every
    benchmark alike, where the ratio of all tokens would follow the longest. InputError for a reference length that is
    not above 0.
    """
    if not all(length > 0 for length in reference):
        raise InputError(f"length change: reference lengths must be above 0, found {min(reference):g}")
    return fmean(length / other - 1 for length, other in zip(lengths, reference, strict=True))
