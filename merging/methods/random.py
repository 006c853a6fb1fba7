"""Random bits that depend on a key and an element's index alone: the same on any device, in any order, for any cut.

A counter-based generator in the spirit of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011): a keyed
multiply and xor-shift hash of the index, in 32-bit integer tensor operations, which wrap alike on CPU and CUDA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 30  # elements that share a key, so that an index within a chunk fits a positive int32
FACTORS = tuple(factor - (1 << 32) for factor in (0x9E3779B9, 0xED5AD4BB, 0xAC4C1B51))


def key_words(seed: int, identity: str, tensor: str, chunk: int) -> tuple[int, int, int]:
    """Three signed 32-bit words from sha256 of what names a stream."""
    digest = hashlib.sha256("\0".join((str(seed), identity, tensor, str(chunk))).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4, 8))


def stretches(start: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Where `count` elements from the `start`-th on lie: (chunk, offset, length) for each chunk they touch."""
    position, end = start, start + count
    while position < end:
        chunk, offset = divmod(position, CHUNK)
        length = min(end - position, CHUNK - offset)
        yield chunk, offset, length
        position += length


def random_bits(like: Tensor, seed: int, identity: str, tensor: str, start: int = 0) -> Tensor:
    """31 random bits (int32 >= 0) per element of `like`, in its shape, for elements `start, start + 1, ...`."""
    import torch

    parts = []
    for chunk, offset, length in stretches(start, like.numel()):
        words = key_words(seed, identity, tensor, chunk)
        x = torch.arange(offset, offset + length, dtype=torch.int32, device=like.device)
        x *= FACTORS[0]
        x += words[0]
        x ^= (x >> 16) & 0xFFFF  # masked: torch's shift copies the sign
        x *= FACTORS[1]
        x += words[1]
        x ^= (x >> 15) & 0x1FFFF
        x *= FACTORS[2]
        x += words[2]
        x >>= 1  # the leading bits are the best mixed
        x &= 0x7FFFFFFF
        parts.append(x)
    found = parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32)
    return found.reshape(like.shape)


RAREST = 2.0**-31  # the least probability that a mask can have, above 0


def keep_mask(like: Tensor, density: float, seed: int, identity: str, tensor: str, start: int = 0) -> Tensor:
    """An int32 mask of `like`'s shape: all bits set with probability `density` (to 2**-31), else none."""
    bits = random_bits(like, seed, identity, tensor, start)
    threshold = round(density * (1 << 31))
    if threshold >= 1 << 31:
        return bits.fill_(-1)
    return bits.sub_(threshold).bitwise_right_shift_(31)  # the sign, copied to every bit


def masked(delta: Tensor, mask: Tensor) -> Tensor:
    """A float32 or float64 tensor with the entries zeroed whose mask has no bits set."""
    mask = mask.to(_bits(delta))
    return (delta.contiguous().view(mask.dtype) & mask).view(delta.dtype)


def _bits(delta: Tensor):
    import torch

    return torch.int32 if delta.dtype.itemsize == 4 else torch.int64
