"""What modules of a running model take in and give out, seen through hooks and under the checkpoint's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from merging.mapped_model import MappedModel

Look = Callable[[Tensor], Any]  # what to keep of a tensor
Watch = Callable[[str, nn.Module], Look | None]  # how to look at a module, by its name; None: not at all
Seen = list[tuple[str, Any]]


class Taps:
    """Hooks on a model's modules; what they kept waits until it is taken."""

    def __init__(self, mapped: MappedModel, inputs: Watch | None, outputs: Watch | None):
        """See `stream` for `inputs` and `outputs`."""
        self._inputs: list[tuple[str, str, Any]] = []
        self._outputs: list[tuple[str, str, Any]] = []
        self.outputs_of: set[str] = set()
        names = checkpoint_names(mapped)
        for own, module in mapped.model.named_modules():
            name = names.get(own, own)
            if inputs and has_weight(module) and (look := inputs(name, module)):
                module.register_forward_pre_hook(partial(self._see_input, own, name, look))
            if outputs and own and (look := outputs(name, module)):
                module.register_forward_hook(partial(self._see_output, own, name, look))
                self.outputs_of.add(own)
            if inputs and (experts := expert_names(mapped, own)):
                looks = [{name: inputs(name, module) for pair in both for name in pair} for both in experts]
                see = partial(self._see_expert, own, {k: v for each in looks for k, v in each.items()})
                module.forward = partial(run_experts, module, experts, see)

    def _see_input(self, own: str, name: str, look: Look, _module, inputs) -> None:
        self._inputs.append((own, name, look(inputs[0])))

    def _see_output(self, own: str, name: str, look: Look, _module, _inputs, output) -> None:
        self._outputs.append((own, name, look(output[0] if isinstance(output, tuple) else output)))

    def _see_expert(self, own: str, looks: dict[str, Look | None], names: list[str], rows: Tensor) -> None:
        for name in names:
            if look := looks[name]:
                self._inputs.append((own, name, look(rows)))

    def take(self, keep: Callable[[str], bool]) -> tuple[Seen, Seen]:
        """What was seen since the last time of the modules to keep, by the model's own names for them."""
        inputs, outputs = self._inputs, self._outputs
        self._inputs, self._outputs = [], []
        return tuple([(name, value) for own, name, value in one if keep(own)] for one in (inputs, outputs))

    @contextmanager
    def aside(self) -> Iterator[set[str]]:
        """Forget what is seen within; gives the model's own names of the modules it was of, once left."""
        kept, names = (self._inputs, self._outputs), set()
        self._inputs, self._outputs = [], []
        try:
            yield names
        finally:
            names.update(own for own, _, _ in self._inputs + self._outputs)
            self._inputs, self._outputs = kept


def has_weight(module: nn.Module) -> bool:
    return isinstance(getattr(module, "weight", None), nn.Parameter)


def checkpoint_names(mapped: MappedModel) -> dict[str, str]:
    """The checkpoint's names for the modules that it has a weight of, by the model's own."""
    names = {}
    for parameter, patterns in mapped.sources.items():
        tensors = [tensor for each in patterns.values() for tensor in each]
        if len(tensors) == 1 and parameter.endswith(".weight") and tensors[0].endswith(".weight"):
            names[parameter.removesuffix(".weight")] = tensors[0].removesuffix(".weight")
    return names


def expert_names(mapped: MappedModel, own: str) -> list[tuple[list[str], list[str]]]:
    """For each expert of a module that holds them all: the checkpoint's modules into it and out of it.

    Empty for other modules, and where the checkpoint itself keeps the experts in one tensor.
    """
    module = mapped.model.get_submodule(own)
    if any(getattr(module, odd, False) for odd in ("has_bias", "is_transposed", "has_post_expert_norm")):
        return []
    into, out = (mapped.sources.get(f"{own}.{name}", {}) for name in ("gate_up_proj", "down_proj"))
    into = into or mapped.sources.get(f"{own}.up_proj", {})
    if not into or not out or "" in into or "" in out:
        return []

    def by_expert(patterns: dict[str, list[str]]) -> list[list[str]]:
        return [[name.removesuffix(".weight") for name in each] for each in zip(*patterns.values(), strict=True)]

    return list(zip(by_expert(into), by_expert(out), strict=True))


def run_experts(
    experts: nn.Module, names: list[tuple[list[str], list[str]]], see, hidden: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """A mixture's experts one after another, `see(names, rows)` told the rows that each gets.

    As transformers' own loop has it: `hidden` (tokens, width), `index` and `weights` (tokens, chosen experts).
    """
    made = hidden.new_zeros(hidden.shape)
    first = experts.gate_up_proj if experts.has_gate else experts.up_proj
    for expert, (into, out) in enumerate(names):
        tokens, place = (index == expert).nonzero(as_tuple=True)
        if not len(tokens):
            continue
        rows = hidden[tokens]
        see(into, rows)
        rows = F.linear(rows, first[expert])
        rows = experts._apply_gate(rows) if experts.has_gate else experts.act_fn(rows)
        see(out, rows)
        rows = F.linear(rows, experts.down_proj[expert]) * weights[tokens, place, None]
        made.index_add_(0, tokens, rows.to(made.dtype))
    return made
