"""Decoder layers in tensor names, and where each tensor of the output comes from when layers are stacked anew."""

from __future__ import annotations

import re
from collections.abc import Iterable

LAYER = re.compile(r"^(.*?\.)(\d+)(\..+)$")


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor belongs to; None for embeddings, the final norm and the head."""
    found = LAYER.match(name)
    return int(found[2]) if found else None


def at_layer(name: str, index: int) -> str:
    """A layer's tensor name with another layer's number."""
    return LAYER.sub(lambda found: f"{found[1]}{index}{found[3]}", name)


def count_layers(names: Iterable[str]) -> int:
    """How many decoder layers tensors of these names make."""
    return max((layer + 1 for name in names if (layer := layer_of(name)) is not None), default=0)


def depth(layer: int | None, layers: int) -> float:
    """Where a gradient stands at a layer: 0 at the first, 1 at the last; 0 outside the layers, 1 at an only one."""
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0
