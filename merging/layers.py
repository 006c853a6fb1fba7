"""Decoder layers in tensor names, and where each tensor of the output comes from when layers are stacked anew."""

from __future__ import annotations

import re
from collections.abc import Iterable

from merging.vocabulary import HEADS, is_embedding

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


def in_order(modules: Iterable[str]) -> list[str]:
    """Modules as a model runs through them: the embedding, the layers by number, what comes after."""

    def place(module: str) -> tuple:
        layer = layer_of(module)
        if layer is not None:
            return 1, layer, module
        weight = f"{module}.weight"
        return (0 if is_embedding(weight) else 2), weight in HEADS, module

    return sorted(modules, key=place)
