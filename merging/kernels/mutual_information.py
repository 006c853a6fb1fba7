"""Counting pairs of 16-bit codes for `merging.mutual_information`: a radix sort, two scattered passes."""

from __future__ import annotations

import numpy as np

from merging.kernels.tiles import kernel

CODES, NEGATIVE_ZERO, INFINITY, MAGNITUDE = 1 << 16, 0x8000, 0x7F80, 0x7FFF
SIXTEEN = np.uint32(16)


def count_pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The distinct `a << 16 | b` of two vectors of bfloat16 bits (uint16), ascending (uint32), and how often each is
    there (int64). -0 counts as 0. None where there is NaN."""
    keys = np.empty(a.size, np.uint32)
    if not sort_pairs(a, b, keys):
        return None
    counts = np.empty(count_distinct(keys), np.int64)
    pack(keys, counts)
    return keys[: len(counts)].copy(), counts


def add_counts(keys, counts, more_keys, more_counts) -> tuple[np.ndarray, np.ndarray]:
    """The sum of two results of `count_pairs`."""
    total = len(keys) + len(more_keys)
    merged_keys, merged_counts = np.empty(total, np.uint32), np.empty(total, np.int64)
    found = merge(keys, counts, more_keys, more_counts, merged_keys, merged_counts)
    return merged_keys[:found].copy(), merged_counts[:found].copy()


@kernel
def sort_pairs(a, b, keys):
    """Put `a << 16 | b` into `keys`, ascending: placed by b first, then, keeping that order, by a. False for NaN."""
    place_a, place_b = np.zeros(CODES + 1, np.int64), np.zeros(CODES + 1, np.int64)
    for i in range(a.size):
        place_a[a[i] + 1] += 1
        place_b[b[i] + 1] += 1
    if not (to_places(place_a) and to_places(place_b)):
        return False
    by_b = np.empty(a.size, np.uint32)
    for i in range(a.size):
        code = b[i] if b[i] != NEGATIVE_ZERO else 0
        by_b[place_b[code]] = (np.uint32(a[i] if a[i] != NEGATIVE_ZERO else 0) << SIXTEEN) | np.uint32(code)
        place_b[code] += 1
    for i in range(a.size):
        code = by_b[i] >> SIXTEEN
        keys[place_a[code]] = by_b[i]
        place_a[code] += 1
    return True


@kernel
def to_places(counts):
    """Turn counts by code + 1 into the places where the codes start, -0 among 0. False where NaN was counted."""
    for code in range(CODES):
        if counts[code + 1] and (code & MAGNITUDE) > INFINITY:
            return False
    counts[1] += counts[NEGATIVE_ZERO + 1]
    counts[NEGATIVE_ZERO + 1] = 0
    for code in range(CODES):
        counts[code + 1] += counts[code]
    return True


@kernel
def count_distinct(keys):
    """How many different ones there are in a sorted vector."""
    found = np.int64(keys.size > 0)
    for i in range(1, keys.size):
        found += np.int64(keys[i] != keys[i - 1])
    return found


@kernel
def pack(keys, counts):
    """Move the distinct keys of a sorted vector to its front, and count each."""
    found = -1
    for i in range(keys.size):
        if i == 0 or keys[i] != keys[found]:
            found += 1
            keys[found] = keys[i]
            counts[found] = 0
        counts[found] += 1


@kernel
def merge(keys, counts, more_keys, more_counts, merged_keys, merged_counts):
    """Merge two ascending lists, adding the counts of equal keys. How many came out."""
    i = j = found = 0
    while i < keys.size or j < more_keys.size:
        left = i < keys.size and (j == more_keys.size or keys[i] <= more_keys[j])
        right = j < more_keys.size and (i == keys.size or more_keys[j] <= keys[i])
        merged_keys[found] = keys[i] if left else more_keys[j]
        merged_counts[found] = 0
        if left:
            merged_counts[found] += counts[i]
            i += 1
        if right:
            merged_counts[found] += more_counts[j]
            j += 1
        found += 1
    return found
