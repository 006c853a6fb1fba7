"""WIDEN (arXiv 2408.03092): weigh each column of each expert by how far its magnitude and direction moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from merging.methods.definition import Group, Method, Over, Parameter, declare
from merging.vocabulary import is_embedding

if TYPE_CHECKING:
    from torch import Tensor

PARAMETERS = declare(
    Parameter(
        "above_average_value_ratio",
        "float",
        1.0,
        "t: a column counts in full where its rank is above t times the mean rank",
        low=0,
        symbol="t",
    ),
    Parameter("score_calibration_value", "float", 1.0, "c: the score of a column that counts in full", symbol="c"),
)


def survey(over: Over, total: int, shared: dict, settings: list[dict]) -> Tensor | None:
    """The experts' scores: (experts, columns) for a matrix, (experts, n) for a vector, in the compute dtype.

    The columns of an embedding are its tokens (it counts as transposed); those of any other weight its inputs. None for
    an empty tensor.
    """
    import torch

    if total == 0:
        return None
    t, c = shared["above_average_value_ratio"], shared["score_calibration_value"]
    if getattr(over, "stored", None):
        from merging.kernels import widen_columns

        parts = over.stored(widen_columns.column_sums)
    else:
        parts = over(lambda group: column_sums(group) if group.experts[0].dim() > 1 else group)
    if isinstance(parts[0], Group):
        moved = torch.stack([delta.abs_().reshape(-1) for delta in parts[0].deltas()])
        return calibrated(moved, t, c)
    by_row, dtype = parts[0][2:]
    squares, dots = (
        torch.cat([part[i] for part in parts], dim=1) if by_row else sum(part[i] for part in parts) for i in (0, 1)
    )
    norms = squares.sqrt()
    magnitude = (norms[1:] - norms[0]).abs()
    direction = 1 - dots / (squares[1:] * squares[0]).sqrt()  # exactly 0 where a column is the base's
    scores = [calibrated(ranks(moved), t, c) for moved in (magnitude, direction)]
    return scores[0].add_(scores[1]).mul_(0.5).to(dtype)


def column_sums(group: Group) -> tuple:
    """float64 sums over a block: squares (experts + 1, columns), base first, and dots with the base (experts, columns).

    Also whether a column is a row of the block, and the compute dtype.
    """
    import torch

    by_row = is_embedding(group.name)
    base, *experts = (tensor.reshape(len(tensor), -1) for tensor in (group.base, *group.experts))
    squares = torch.stack([sums(w * w, by_row) for w in (base, *experts)])
    dots = torch.stack([sums(w * base, by_row) for w in experts])
    return squares, dots, by_row, base.dtype


def sums(products: Tensor, by_row: bool) -> Tensor:
    """The sum of each column (row) in float64, folded in halves: an order of adding that is no machine's own."""
    import torch

    folded = (products.T if by_row else products).double()
    while len(folded) > 1:
        if len(folded) % 2:
            folded = torch.cat([folded, folded.new_zeros(1, folded.shape[1])])
        half = len(folded) // 2
        folded = folded[:half] + folded[half:]
    return folded.sum(0)


def ranks(moved: Tensor) -> Tensor:
    """`k / n` for the k-th smallest (from 0) of each row, by a stable sort; NaN ranks highest.

    In float32 whatever the compute dtype, as the published code has it: its scores are float32.
    """
    import torch

    order = moved.argsort(dim=1, stable=True)
    steps = torch.arange(moved.shape[1], dtype=torch.float32, device=moved.device) / moved.shape[1]
    return torch.empty_like(moved, dtype=torch.float32).scatter_(1, order, steps.expand_as(moved).contiguous())


def calibrated(values: Tensor, t: float, c: float) -> Tensor:
    """The softmax over experts, `c` where an expert's value is above `t` times its mean."""
    above = values > t * values.mean(dim=1, keepdim=True)
    return values.softmax(dim=0).masked_fill_(above, c)


def merge(group: Group) -> Tensor:
    """`b + sum_i d_i * score_i`, the score broadcast over a column."""
    merged = group.base.clone()
    if group.facts is None:
        return merged
    for delta, score in zip(group.deltas(), scores_of(group), strict=True):
        merged.add_(delta.mul_(score))  # not addcmul: a fused multiply-add rounds once, on some machines only
    return merged


def scores_of(group: Group) -> Tensor:
    """The scores shaped to broadcast over the block."""
    dims = group.base.dim()
    if dims < 2:
        return group.facts.reshape(-1, *group.base.shape)
    if is_embedding(group.name):
        first = group.start // max(group.base[0].numel(), 1)
        return group.facts[:, first : first + len(group.base)].reshape(-1, len(group.base), *[1] * (dims - 1))
    return group.facts.reshape(-1, *group.base.shape[1:])


WIDEN = Method(
    name="widen",
    summary="weigh each column of each delta by how far its magnitude and direction moved",
    paper="arXiv 2408.03092",
    needs_base=True,
    parameters=PARAMETERS,
    merge=merge,
    survey=survey,
    kernel="merging.kernels.widen_columns:weigh",
    version=3,
    ordered_in_float64=True,
)
