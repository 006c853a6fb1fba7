"""Random bits that depend on a key and an element's index alone: the same on any device, in any order, for any cut.

A counter-based generator in the spirit of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). The
mixing function is `lowbias32` (C. Wellons, hash-prospector), applied twice with key words between, in 32-bit integer
tensor operations, which wrap alike on CPU and CUDA.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 1 << 30  # elements that share a key, so that an index within a chunk fits a positive int32


def key_words(seed: int, identity: str, tensor: str, chunk: int) -> tuple[int, int, int]:
    """Three signed 32-bit words from sha256 of what names a stream."""
    digest = hashlib.sha256("\0".join((str(seed), identity, tensor, str(chunk))).encode()).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4, 8))


def mix(x: Tensor) -> Tensor:
    """`lowbias32` in place on an int32 tensor. Shifts are made logical by masking the sign's copies off."""
    x ^= (x >> 16) & 0xFFFF
    x *= 0x7FEB352D
    x ^= (x >> 15) & 0x1FFFF
    x *= 0x846CA68B - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x


def random_bits(like: Tensor, seed: int, identity: str, tensor: str, start: int = 0) -> Tensor:
    """One int32 of random bits per element of `like`, flat, for the elements `start, start + 1, ...` of a tensor."""
    import torch

    parts = []
    position, end = start, start + like.numel()
    while position < end:
        chunk, offset = divmod(position, CHUNK)
        length = min(end - position, CHUNK - offset)
        first, second, third = key_words(seed, identity, tensor, chunk)
        x = torch.arange(offset, offset + length, dtype=torch.int32, device=like.device)
        parts.append(mix(mix(x.bitwise_xor_(first)).add_(second)).bitwise_xor_(third))
        position += length
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else like.new_empty(0, dtype=torch.int32)


def keep_mask(like: Tensor, density: float, seed: int, identity: str, tensor: str, start: int = 0) -> Tensor:
    """A bool tensor of `like`'s shape, each entry true with probability `density` (to 2**-32)."""
    import torch

    threshold = round(density * (1 << 32)) - (1 << 31)
    if threshold >= 1 << 31:
        return like.new_ones(like.shape, dtype=torch.bool)
    return (random_bits(like, seed, identity, tensor, start) < threshold).reshape(like.shape)
