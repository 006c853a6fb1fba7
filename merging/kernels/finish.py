"""The end of every merge: AIM's relaxation, the rounding to what is stored, the size of the change."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from merging.kernels.tiles import TILE, kernel, widen

HALF, ONE_BIT, SIXTEEN = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
NO_BASE, NO_FACTOR = np.empty((0, 0), np.float32), np.empty(0, np.float32)


def finish(merged: np.ndarray, base: np.ndarray | None, factor: np.ndarray | None, dtype) -> tuple[np.ndarray, float]:
    """A merged block (rows, columns) as stored, uint16 (bfloat16 bits) or float32, and the change's sum of squares.

    `base` (stored) is what the change is measured from; `factor` (columns,), float32, what AIM multiplies it by.
    """
    out = np.empty(merged.shape, dtype)
    origin = NO_BASE if base is None else base
    return out, relax_and_round(merged, origin, NO_FACTOR if factor is None else factor, out)


@kernel
def relax_and_round(merged, base, factor, out):
    rows, columns = merged.shape
    origin, tile, squares = np.empty(TILE, np.float32), np.empty(TILE, np.float32), np.zeros(TILE, np.float32)
    total = 0.0
    for row in range(rows):
        for start in range(0, columns, TILE):
            end = min(start + TILE, columns)
            here = tile[: end - start]
            here[:] = merged[row][start:end]
            if base.size:
                b = origin[: end - start]
                widen(base[row][start:end], b)
                if factor.size:
                    relax(here, b, factor[start:end])
                measure(here, b, squares[: end - start])
            narrow(here, out[row][start:end])
        if base.size and row % 16 == 15 or row == rows - 1:
            for i in range(TILE):
                total += squares[i]
            squares[:] = 0
    return total


@kernel
def relax(merged, base, factor):
    """`b + (merged - b) * factor`, in place, rounded after each operation."""
    for i in range(merged.size):
        change = (merged[i] - base[i]) * factor[i]
        merged[i] = change + base[i]


@kernel
def measure(merged, base, squares):
    """`squares += (merged - b)^2`."""
    for i in range(merged.size):
        change = merged[i] - base[i]
        squares[i] += change * change


def narrow(wide, out):
    """Round float32 to what `out` stores, bfloat16 bits (to nearest, ties to even) or float32."""
    raise NotImplementedError("compiled code only")


@overload(narrow, jit_options={"nogil": True})
def _narrow(wide, out):
    if out.dtype == types.uint16:

        def bfloat16(wide, out):
            bits = wide.view(np.uint32)
            for i in range(bits.size):
                out[i] = np.uint16((bits[i] + HALF + ((bits[i] >> SIXTEEN) & ONE_BIT)) >> SIXTEEN)

        return bfloat16

    def float32(wide, out):
        for i in range(wide.size):
            out[i] = wide[i]

    return float32
