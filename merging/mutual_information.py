"""Mutual information of two activations, each distinct bfloat16 value a category of its own (arXiv 2505.14009).

The plug-in estimator, exact: `I = H(a) + H(b) - H(a, b)` in nats, from how often each value and each pair occurs. What
scikit-learn's `mutual_info_score` computes, without its sorting of every value.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

PIECE = 1 << 24  # pairs counted at a time, in at most 400 MB
NEGATIVE_ZERO, INFINITY, MAGNITUDE, LOW = -(1 << 15), 0x7F80, 0x7FFF, 0xFFFF  # bfloat16 as int16


class NotANumber(ValueError):
    """An activation holds NaN."""


def mutual_information(a: Tensor, b: Tensor) -> float:
    """The mutual information, in nats, of two tensors of one shape, paired element by element.

    Any float dtype, rounded to bfloat16; -0 counts as 0. 0 for empty ones. Raises NotANumber.
    """
    pairs = PairCounts()
    pairs.add(a, b)
    return pairs.information()


class PairCounts:
    """How often each pair of bfloat16 values occurred, over all that was added; memory follows the distinct pairs."""

    def __init__(self):
        self.keys: Tensor | None = None  # a's code << 16 | b's code, int32
        self.counts: Tensor | None = None  # int64

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count the pairs of two tensors of one shape, on one device. Raises NotANumber, ValueError for two shapes."""
        if a.shape != b.shape:
            raise ValueError(f"two activations of one shape are paired, found {tuple(a.shape)} and {tuple(b.shape)}")
        a, b = a.reshape(-1), b.reshape(-1)
        for start in range(0, a.numel(), PIECE):
            counted = count_pairs(a[start : start + PIECE], b[start : start + PIECE])
            if self.keys is not None:
                counted = add_counts(self.keys, self.counts, *counted)
            self.keys, self.counts = counted

    def information(self) -> float:
        """`H(a) + H(b) - H(a, b)`, in nats, of all that was added; never below 0."""
        if self.keys is None:
            return 0.0
        weights = self.counts.double()
        total = float(weights.sum())
        marginals = [torch.bincount((self.keys >> shift) & LOW, weights) for shift in (16, 0)]
        # n H = n log n - sum(c log c): the sums are below 1e12 and right to 1e-15 of that
        found = x_log_x(weights) - sum(x_log_x(marginal[marginal > 0]) for marginal in marginals)
        return max(0.0, math.log(total) + found / total)


def count_pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct pairs of two vectors as int32 keys, and how often each is there (int64). Raises NotANumber."""
    a, b = (values.to(torch.bfloat16).contiguous().view(torch.int16) for values in (a, b))
    if has_kernels(a):
        from merging.kernels import mutual_information as kernels

        counted = kernels.count_pairs(a.numpy().view(np.uint16), b.numpy().view(np.uint16))
        if counted is None:
            raise NotANumber("an activation holds NaN")
        return torch.from_numpy(counted[0].view(np.int32)), torch.from_numpy(counted[1])
    return torch.unique((codes(a) << 16) | (codes(b) & LOW), return_counts=True)


def codes(bits: Tensor) -> Tensor:
    """The bits of bfloat16 values (int16) as int32, -0 as 0. Raises NotANumber."""
    if bool(((bits & MAGNITUDE) > INFINITY).any()):
        raise NotANumber("an activation holds NaN")
    return bits.masked_fill(bits == NEGATIVE_ZERO, 0).int()


def add_counts(keys: Tensor, counts: Tensor, more_keys: Tensor, more_counts: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of two results of `count_pairs`."""
    if has_kernels(keys):
        from merging.kernels import mutual_information as kernels

        given = keys.numpy().view(np.uint32), counts.numpy(), more_keys.numpy().view(np.uint32), more_counts.numpy()
        merged_keys, merged_counts = kernels.add_counts(*given)
        return torch.from_numpy(merged_keys.view(np.int32)), torch.from_numpy(merged_counts)
    merged, places = torch.unique(torch.cat([keys, more_keys]), return_inverse=True)
    return merged, torch.zeros_like(merged, dtype=torch.int64).index_add_(0, places, torch.cat([counts, more_counts]))


def has_kernels(tensor: Tensor) -> bool:
    """Whether compiled code counts, rather than torch: on a CPU it is many times faster."""
    return tensor.device.type == "cpu"


def x_log_x(counts: Tensor) -> float:
    """`sum(c log c)` of counts > 0, float64."""
    return float(counts.log().mul_(counts).sum())
