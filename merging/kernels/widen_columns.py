"""widen: the sums over columns its survey needs, and the weighing of the columns."""

from __future__ import annotations

import numpy as np
import torch

from merging.kernels.tiles import TILE, add, kernel, refuse, subtract, widen
from merging.methods.definition import Group
from merging.vocabulary import is_embedding


def column_sums(group: Group) -> tuple:
    """`merging.methods.widen.column_sums` of a stored block."""
    by_row = is_embedding(group.name)
    rows, columns = group.base.shape
    count = rows if by_row else columns
    squares = np.zeros((len(group.experts) + 1, count))
    dots = np.zeros((len(group.experts), count))
    refuse(add_products(group.base, tuple(group.experts), by_row, squares, dots))
    return torch.from_numpy(squares), torch.from_numpy(dots), by_row, torch.float32


@kernel
def add_products(base, experts, by_row, squares, dots):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    rows, columns = base.shape
    origin, wide = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for start in range(0, columns, TILE):
        end = min(start + TILE, columns)
        b, w = origin[: end - start], wide[: end - start]
        for row in range(rows):
            if widen(base[row][start:end], b):
                return len(experts) + 1
            if by_row:
                squares[0, row] += inner(b, b)
            else:
                products(b, b, squares[0][start:end])
            for j in range(len(experts)):
                if widen(experts[j][row][start:end], w):
                    return j + 1
                if by_row:
                    squares[j + 1, row] += inner(w, w)
                    dots[j, row] += inner(w, b)
                else:
                    products(w, w, squares[j + 1][start:end])
                    products(w, b, dots[j][start:end])
    return 0


@kernel
def products(one, other, sums):
    """`sums += one * other`, the product rounded to float32."""
    for i in range(one.size):
        sums[i] += one[i] * other[i]


@kernel
def inner(one, other):
    """The sum of products in float64, in eight strands so that it does not wait for itself."""
    strands = np.zeros(8)
    whole = one.size // 8 * 8
    for start in range(0, whole, 8):
        for k in range(8):
            strands[k] += one[start + k] * other[start + k]
    total = strands.sum()
    for i in range(whole, one.size):
        total += one[i] * other[i]
    return total


def weigh(group: Group) -> np.ndarray:
    """`merging.methods.widen.merge` of a stored block: float32, of its shape. `group.facts` are the scores."""
    out = np.empty(group.base.shape, np.float32)
    scores = group.facts.numpy()
    if by_row := is_embedding(group.name):
        first = group.start // max(group.base.shape[1], 1)
        scores = scores[:, first : first + len(group.base)]
    refuse(weighed(group.base, tuple(group.experts), np.ascontiguousarray(scores), by_row, out))
    return out


@kernel
def weighed(base, experts, scores, by_row, out):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    rows, columns = base.shape
    origin, wide = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    for row in range(rows):
        for start in range(0, columns, TILE):
            end = min(start + TILE, columns)
            b, w, total = origin[: end - start], wide[: end - start], out[row][start:end]
            if widen(base[row][start:end], b):
                return len(experts) + 1
            total[:] = b
            for j in range(len(experts)):
                if widen(experts[j][row][start:end], w):
                    return j + 1
                subtract(w, b)
                if by_row:
                    for i in range(w.size):
                        w[i] *= scores[j, row]
                else:
                    score = scores[j][start:end]
                    for i in range(w.size):
                        w[i] *= score[i]
                add(total, w)
    return 0
