"""Sizes, read and shown."""

import pytest

from merging.errors import InputError
from merging.units import read_size, shown


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("5GB", 5_000_000_000),
        ("500 MB", 500_000_000),
        ("2GiB", 2 << 30),
        ("1.5kb", 1500),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes_with_and_without_units(text, size):
    assert read_size(text, "here") == size


@pytest.mark.parametrize("text", ["", "0", "0.1", "-5GB", "5 gigs", "GB", "1e9", "inf"])
def test_what_is_no_size_is_named(text):
    with pytest.raises(InputError, match="here: expected bytes or a size like 5GB"):
        read_size(text, "here")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_949, "999.9 kB"), (999_960, "1.0 MB"), (4.9e9, "4.9 GB")],
)
def test_sizes_are_shown_short(size, text):
    assert shown(size) == text
