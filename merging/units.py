"""Sizes in bytes as people write and read them."""

from __future__ import annotations

import re

from merging.errors import InputError

UNITS = {"": 1, "b": 1}
UNITS |= {prefix + "b": 1000**power for power, prefix in enumerate("kmgt", start=1)}
UNITS |= {prefix + "ib": 1024**power for power, prefix in enumerate("kmgt", start=1)}


def read_size(text: str, where: str) -> int:
    """Bytes of "5GB", "500 MB", "2GiB" or "5000000000". Raises InputError, `where` before it."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower(), re.ASCII)
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if size < 1:
        raise InputError(f"{where}: expected bytes or a size like 5GB, 500MB or 2GiB, found {text!r}")
    return size


def shown(size: float) -> str:
    """Bytes with the unit that keeps the number short: "512 B", "4.9 GB"."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
