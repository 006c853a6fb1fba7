"""What every kernel does with a tile: widen stored values to float32, subtract the base, look for NaN and Inf."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numba
import numpy as np
from numba import njit, types
from numba.extending import overload

TILE = 1024  # float32 values; eight tiles fit a first-level cache
EXPONENT = np.uint16(0x7F80)
EXPONENT32 = np.uint32(0x7F800000)
SIXTEEN = np.uint32(16)


def cache_folder() -> Path:
    """Where compiled kernels are kept: one folder for all their sources as they are now.

    numba itself looks only at the file a kernel stands in, and would go on with old code of what it calls elsewhere.
    """
    here = Path(__file__).parent
    sources = hashlib.sha256(b"\0".join(path.read_bytes() for path in sorted(here.glob("*.py")))).hexdigest()
    beside = here / "__pycache__"
    home = beside if os.access(beside if beside.exists() else here, os.W_OK) else Path.home() / ".cache" / "mergeflow"
    return home / f"kernels-{sources[:16]}"


numba.config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or str(cache_folder())


class NotFinite(ValueError):
    """An input of a kernel holds NaN or Inf; `index` counts the experts from 0, the base comes after the last."""

    def __init__(self, index: int):
        super().__init__(index)
        self.index = index


def refuse(bad: int) -> None:
    """Raises NotFinite for what a kernel returned: 0, or the number of an input, from 1."""
    if bad:
        raise NotFinite(int(bad) - 1)


def kernel(function):
    """Compile a kernel, without the interpreter's lock; kept on disk where a cache folder can be written.

    Dividing by 0 gives what it does in torch.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)


def widen(stored, wide):
    """Put a stored tile (uint16: bfloat16 bits; or float32) into `wide` (float32). How many are NaN or Inf."""
    raise NotImplementedError("compiled code only")


@overload(widen, jit_options={"nogil": True})
def _widen(stored, wide):
    if stored.dtype == types.uint16:

        def bfloat16(stored, wide):
            bits = wide.view(np.uint32)
            bad = np.uint32(0)
            for i in range(stored.size):
                bits[i] = np.uint32(stored[i]) << SIXTEEN
                bad = np.uint32(bad + np.uint32((stored[i] & EXPONENT) == EXPONENT))
            return bad

        return bfloat16

    def float32(stored, wide):
        bits = stored.view(np.uint32)
        bad = np.uint32(0)
        for i in range(stored.size):
            wide[i] = stored[i]
            bad = np.uint32(bad + np.uint32((bits[i] & EXPONENT32) == EXPONENT32))
        return bad

    return float32


@kernel
def subtract(wide, base):
    """`wide -= base`, in place."""
    for i in range(wide.size):
        wide[i] -= base[i]


@kernel
def scale(wide, weight):
    """`wide *= weight`, in place."""
    for i in range(wide.size):
        wide[i] *= weight


@kernel
def add(total, wide):
    """`total += wide`, in place."""
    for i in range(total.size):
        total[i] += wide[i]


@kernel
def scaled_plus_base(mixed, scaling, base, out):
    """`out = mixed * scaling + base`, rounded after each."""
    for i in range(mixed.size):
        out[i] = mixed[i] * scaling + base[i]
