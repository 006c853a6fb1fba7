"""dare_linear and dare_ties."""

from __future__ import annotations

import numpy as np

from merging.kernels.elect import elect
from merging.kernels.tiles import TILE, add, kernel, refuse, scale, scaled_plus_base, subtract, widen
from merging.methods.definition import Group
from merging.methods.random import FACTORS, key_words, stretches

ZERO, ONE = np.float32(0), np.float32(1)
SHIFTS = np.uint32(16), np.uint32(15), np.uint32(1)
MIX = tuple(np.uint32(factor & 0xFFFFFFFF) for factor in FACTORS)


def dare_linear(group: Group) -> np.ndarray:
    """`merging.methods.dare.merge_linear` of a stored block: float32, of its shape."""
    return dare(group, False)


def dare_ties(group: Group) -> np.ndarray:
    """`merging.methods.dare.merge_ties` of a stored block: float32, of its shape."""
    return dare(group, True)


def dare(group: Group, election: bool) -> np.ndarray:
    out = np.empty(group.base.shape, np.float32)
    flat = out.reshape(-1)
    base, experts = group.base.reshape(-1), [expert.reshape(-1) for expert in group.experts]
    weights = group.weights()
    total = sum(weights)
    divisor = total if group.shared["normalize"] and not election and abs(total) >= 1e-8 else 1.0
    # in 31 bits; all of them stay below 2**31
    thresholds = np.array([round(setting["density"] * (1 << 31)) for setting in group.settings], np.uint32)
    done = 0
    for chunk, offset, length in stretches(group.start, flat.size):
        part = slice(done, done + length)
        words = [key_words(group.seed, key, group.name, chunk) for key in group.keys]
        bad = dropped_and_merged(
            base[part],
            tuple(expert[part] for expert in experts),
            np.array(words, np.int32).view(np.uint32),
            np.uint32(offset),
            thresholds,
            np.array(group.facts, np.float32),
            np.array(weights, np.float32),
            np.float32(divisor),
            np.float32(group.shared["lambda"]),
            election,
            group.shared["normalize"],
            flat[part],
        )
        refuse(bad)
        done += length
    return out


@kernel
def dropped_and_merged(
    base, experts, words, offset, thresholds, rescales, weights, divisor, scaling, election, normalize, out
):
    """The first of experts and base that holds NaN or Inf, the base as 1 more than the experts; 0 where none does."""
    origin = np.empty(TILE, np.float32)
    deltas = np.empty((len(experts), TILE), np.float32)
    scratch = np.empty((2, TILE), np.float32)
    bits = np.empty(TILE, np.uint32)
    for start in range(0, out.size, TILE):
        end = min(start + TILE, out.size)
        b, mixed = origin[: end - start], out[start:end]
        if widen(base[start:end], b):
            return len(experts) + 1
        for j in range(len(experts)):
            delta = deltas[j][: end - start]
            if widen(experts[j][start:end], delta):
                return j + 1
            subtract(delta, b)
            random_bits(words[j], np.uint32(offset + np.uint32(start)), bits[: delta.size])
            drop(delta, bits, thresholds[j])
            if rescales[j] != ONE:
                for i in range(delta.size):
                    delta[i] /= rescales[j]
        if election:
            elect(deltas, weights, ONE, normalize, scratch, mixed)
        else:
            for j in range(len(experts)):
                delta = deltas[j][: mixed.size]
                if weights[j] != ONE:
                    scale(delta, weights[j])
                if j == 0:
                    mixed[:] = delta
                else:
                    add(mixed, delta)
            if divisor != ONE:
                for i in range(mixed.size):
                    mixed[i] /= divisor
        scaled_plus_base(mixed, scaling, b, mixed)
    return 0


@kernel
def random_bits(words, first, bits):
    """`merging.methods.random.random_bits` of elements `first`, `first + 1`, ... of a stretch, by its key words."""
    one, two, three = words[0], words[1], words[2]
    for i in range(bits.size):
        x = np.uint32(np.uint32(first + np.uint32(i)) * MIX[0] + one)
        x = np.uint32(x ^ (x >> SHIFTS[0]))
        x = np.uint32(x * MIX[1] + two)
        x = np.uint32(x ^ (x >> SHIFTS[1]))
        x = np.uint32(x * MIX[2] + three)
        bits[i] = x >> SHIFTS[2]


@kernel
def drop(delta, bits, threshold):
    """Zero the entries whose bits do not lie below the threshold."""
    for i in range(delta.size):
        delta[i] = delta[i] if bits[i] < threshold else ZERO
