"""The masks of DARE and DELLA: what they depend on, and that they are random."""

import hashlib

import pytest
import torch

from merging.methods.random import CHUNK, keep_mask, masked, random_bits


def kept(*args, **keys):
    return keep_mask(*args, **keys) != 0


def test_masks_depend_on_seed_expert_tensor_and_element_alone():
    like = torch.empty(1000)
    whole = kept(like, 0.3, 1, "expert", "w")
    assert torch.equal(kept(torch.empty(10, 100), 0.3, 1, "expert", "w").flatten(), whole)
    assert torch.equal(kept(torch.empty(400), 0.3, 1, "expert", "w", start=600), whole[600:])
    for seed, expert, name in [(2, "expert", "w"), (1, "other", "w"), (1, "expert", "v")]:
        assert not torch.equal(kept(like, 0.3, seed, expert, name), whole)


def test_bits_are_those_of_another_implementation():
    digest = hashlib.sha256(b"5\0expert\0w\0" + b"1").digest()
    first, second, third = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8))

    def bits(i):
        x = (i * 0x9E3779B9 + first) & 0xFFFFFFFF
        x ^= x >> 16
        x = (x * 0xED5AD4BB + second) & 0xFFFFFFFF
        x ^= x >> 15
        return ((x * 0xAC4C1B51 + third) & 0xFFFFFFFF) >> 1

    assert random_bits(torch.empty(200), 5, "expert", "w", CHUNK).tolist() == [bits(i) for i in range(200)]
    across = random_bits(torch.empty(20), 5, "expert", "w", CHUNK - 10)
    assert across[10:].tolist() == [bits(i) for i in range(10)]


@pytest.mark.parametrize("density", [0.0, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_masks_keep_their_share_independently(density):
    """Means within five standard deviations: single, of neighbours, of elements a row apart, and across streams."""
    n = 1 << 20
    masks = [kept(torch.empty(n), density, seed, expert, "w") for seed, expert in [(0, "a"), (0, "b"), (1, "a")]]

    def deviates(mask, share):
        return abs(mask.double().mean().item() - share) > 5 * (share * (1 - share) / len(mask)) ** 0.5

    pairs = [masks[0] & masks[1], masks[0] & masks[2], masks[1] & masks[2]]
    apart = [masks[0][lag:] & masks[0][:-lag] for lag in (1, 2, 64, 4096, 65536)]
    assert not any(deviates(mask, density) for mask in masks)
    assert not any(deviates(mask, density**2) for mask in pairs + apart)


def test_many_streams_share_no_pattern():
    """Over 400 streams each position is kept equally often: chi-square of 4096 positions, five deviations."""
    streams, positions = 400, 4096
    counts = sum(kept(torch.empty(positions), 0.5, 0, f"expert {i}", "w").double() for i in range(streams))
    chi_square = ((counts - streams / 2) ** 2 / (streams / 4)).sum().item()
    assert abs(chi_square - positions) <= 5 * (2 * positions) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masking_keeps_values_exactly(dtype):
    values = torch.tensor([1.5, -0.0, -2.0, 1e-40], dtype=dtype)
    mask = torch.tensor([-1, -1, 0, -1], dtype=torch.int32)
    assert masked(values, mask).tolist() == [*values[:2].tolist(), 0.0, values[3].item()]
