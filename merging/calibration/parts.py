"""A model in parts, one decoder layer of it in memory: each runs on hidden states as the whole model would run it.

The model's own forward says what a layer is called with (masks, rotary embeddings, whatever differs from layer to
layer): each layer's forward is replaced for a moment by one that notes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.calibration.watch import Taps, Watch
from merging.errors import InputError
from merging.mapped_model import MappedModel


class NotStreamable(Exception):
    """The model's layers cannot be run one by one; run it whole."""


class Stop(Exception):
    """Ends a forward that has gone far enough."""


class Run:
    """A model in parts: what comes before its layers, each layer, what comes after."""

    def __init__(self, folder: str | Path, inputs: Watch | None, outputs: Watch | None, dtype: torch.dtype, device):
        self.mapped = open_model(folder, dtype, device)
        if self.mapped.missing:
            raise InputError(f"{folder}: tensor {min(self.mapped.missing)} is missing; fetch the model again")
        model = self.mapped.model
        self.layers = [model.get_submodule(name) for name in self.mapped.layers]
        self.taps = Taps(self.mapped, inputs, outputs)
        self.embedding = self._names(model.get_input_embeddings())
        self.head = self._names(head := model.get_output_embeddings())
        self.always = sorted(set(self.mapped.outside_layers()) - {*self.embedding, *self.head})
        self._inside = tuple(layer + "." for layer in self.mapped.layers)
        self._in_front: set[str] | None = None
        self._calls: list[tuple[tuple, dict]] = []
        self._calls_shape: torch.Size | None = None
        self._head_runs = head is None or self.mapped.name_of(head) in self.taps.outputs_of
        if not self._head_runs:
            head.register_forward_pre_hook(stop)

    def _names(self, module: nn.Module | None) -> list[str]:
        return [] if module is None else self.mapped.within(self.mapped.name_of(module))

    def is_outside(self, name: str) -> bool:
        """Whether a module is part of no layer, nor a layer."""
        return not (name + ".").startswith(self._inside)

    def is_within(self, index: int) -> Callable[[str], bool]:
        return lambda name: (name + ".").startswith(self._inside[index])

    def is_tail(self, name: str) -> bool:
        return self.is_outside(name) and name not in self._in_front

    def load_head(self) -> None:
        if self._head_runs:
            tied = self.mapped.model.all_tied_weights_keys
            self.mapped.load([*self.head, *(tied[name] for name in self.head if name in tied)])
            self.mapped.tie()

    @torch.no_grad()
    def forward(self, **inputs) -> None:
        """The model's forward, up to where it is stopped."""
        with suppress(Stop):
            self.mapped.model(**inputs, use_cache=False)

    def enter(self, ids: Tensor, *, check: bool) -> Tensor:
        """A sample's hidden states as the first layer gets them.

        With `check`, raises NotStreamable if what else the layer gets is not what `calls` says.
        """
        caught = []

        def first(*args, **kwargs):
            caught.append(without_hidden(args, kwargs))
            raise Stop

        with replaced(self.layers[:1], lambda _: first):
            self.forward(input_ids=ids[None].to(self.mapped.device))
        hidden, rest = caught[0]
        if check and not same(rest, self.calls(hidden)[0]):
            raise NotStreamable(f"{self.mapped.folder}: what its layers get depends on the tokens")
        return hidden

    def calls(self, hidden: Tensor) -> list[tuple[tuple, dict]]:
        """What each layer is called with besides hidden states of a shape; their values do not matter."""
        if self._calls_shape != hidden.shape:
            caught = {}

            def note(index):
                def forward(*args, **kwargs):
                    caught[index] = without_hidden(args, kwargs)[1]
                    if index == len(self.layers) - 1:
                        raise Stop
                    return hidden

                return forward

            with self.taps.aside() as self._in_front, replaced(self.layers, note):
                try:
                    self.forward(inputs_embeds=hidden)
                except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
                    raise NotStreamable(f"{self.mapped.folder}: does not run on hidden states: {error}") from error
            if len(caught) < len(self.layers):
                raise NotStreamable(f"{self.mapped.folder}: not every layer is called")
            self._calls, self._calls_shape = [caught[index] for index in range(len(self.layers))], hidden.shape
        return self._calls

    @torch.no_grad()
    def through(self, index: int, hidden: Tensor) -> None:
        """Run a layer on a sample's hidden states, in place."""
        args, kwargs = self.calls(hidden)[index]
        made = self.layers[index](hidden, *args, **kwargs)
        if not isinstance(made, Tensor):
            raise NotStreamable(f"{self.mapped.folder}: its layers give more than hidden states")
        hidden.copy_(made)

    def leave(self, hidden: Tensor) -> None:
        """Run what comes after the last layer."""
        if self._in_front is None:
            self.calls(hidden)
        with replaced(self.layers, lambda _: lambda *_, **__: hidden):
            self.forward(inputs_embeds=hidden)


def open_model(folder: str | Path, dtype: torch.dtype, device) -> MappedModel:
    """The model in a folder, not loaded yet. Raises InputError where it cannot be."""
    try:
        return MappedModel(folder, dtype, device)
    except InputError:
        raise
    except Exception as error:  # transformers' own are of many kinds
        raise InputError(f"{folder}: does not load in transformers: {' '.join(str(error).split())}") from error


def stop(*_) -> None:
    raise Stop


@contextmanager
def replaced(layers: Sequence[nn.Module], forward: Callable[[int], Callable]) -> Iterator[None]:
    """Give layers another forward within, the one for each index; attributes and hooks stay the layers' own."""
    try:
        for index, layer in enumerate(layers):
            layer.forward = forward(index)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def without_hidden(args: tuple, kwargs: dict) -> tuple[Tensor, tuple[tuple, dict]]:
    """The hidden states a layer is called with, and the rest of its arguments."""
    if args:
        return args[0], (args[1:], kwargs)
    return kwargs["hidden_states"], ((), {key: value for key, value in kwargs.items() if key != "hidden_states"})


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, tensors within them by value."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other)
