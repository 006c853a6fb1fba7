"""Where each tensor of the output comes from: the same tensor of whole models, or layers stacked anew in slices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from merging.layers import at_layer, count_layers, depth, layer_of
from merging.recipe import ModelEntry, Recipe, Slice, Source
from merging.vocabulary import is_embedding


@dataclass(frozen=True)
class Place:
    """The models an output tensor is merged from, and where a gradient stands there (0 to 1).

    `offset` counts the layers of the slice; None where no slice moves the tensor.
    """

    entries: list[ModelEntry] | list[Source]
    t: float
    slice: Slice | None = None
    offset: int | None = None

    def source(self, entry: ModelEntry | Source, tensor: str) -> str:
        """The name of an output tensor in one of its models."""
        return tensor if self.offset is None else at_layer(tensor, entry.layer_range[0] + self.offset)


def places(recipe: Recipe, names: Iterable[str]) -> dict[str, Place]:
    """The place of every output tensor, by name; `names` are the tensors of the model that gives the output its form.

    A stack of slices takes its embedding from the models of the first slice, and the final norm and the head from
    those of the last.
    """
    names = list(names)
    if not recipe.slices:
        layers = count_layers(names)
        return {name: Place(recipe.models, depth(layer_of(name), layers)) for name in names}
    found = {}
    for name in names:
        if layer_of(name) is None:
            slice = recipe.slices[0 if is_embedding(name) else -1]
            found[name] = Place(slice.sources, 0.0, slice)
    first_layer = [name for name in names if layer_of(name) == 0]
    layer = 0
    for slice in recipe.slices:
        for offset in range(slice.length):
            place = Place(slice.sources, depth(offset, slice.length), slice, offset)
            found.update((at_layer(name, layer), place) for name in first_layer)
            layer += 1
    return found


def stacked_layers(recipe: Recipe) -> list[int]:
    """For each layer of a stack, the layer of its slice's first source."""
    return [slice.sources[0].layer_range[0] + i for slice in recipe.slices or [] for i in range(slice.length)]
