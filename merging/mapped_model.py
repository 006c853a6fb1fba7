"""A transformers model whose weights are the pages of its checkpoint: nothing of the model's size is allocated.

The model is made without weights. A tensor is then put in place as the checkpoint maps it (`Checkpoint.read`), where
its dtype and form are what the model wants. Those that must be converted (another dtype, a mixture's experts in one
tensor) take memory, so they come and go with the decoder layer they belong to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from merging.architecture import decoder_layers, without_weights
from merging.checkpoint import Checkpoint
from merging.errors import InputError


class MappedModel:
    """`model`: a causal language model of transformers in evaluation mode, its weights to be put in place by `load`.

    `layers` are the names of its decoder layers' modules, in order; empty where they cannot be told. `sources` gives
    for each parameter the tensors of the checkpoint it is made of, by the pattern they are named after: one, but for
    the experts of a mixture. `missing` and `unexpected` are parameters and tensors without a counterpart.
    """

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"):
        """`dtype` is that of the parameters once loaded; that of most of the checkpoint by default.

        Raises InputError for a checkpoint that cannot be read, and whatever transformers raises for a configuration
        it does not know.
        """
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.folder, self.device = Path(folder), torch.device(device)
        self.checkpoint = Checkpoint(folder)
        self.dtype = dtype or most_common_dtype(self.checkpoint)
        self.model = without_weights(self.folder, self.dtype, self.device)
        self._mapping = get_model_conversion_mapping(self.model)
        self._wanted = self.model.state_dict()
        self.sources: dict[str, dict[str, list[str]]] = {}
        self.unexpected: set[str] = set()
        self._converted: set[str] = set()
        self._stacked: dict[str, list[str]] = {}  # by parameter, its sources' patterns in the order of its rows
        self._match_names()
        self.missing = set(self._wanted) - set(self.sources)
        self._settle_names()
        self.layers = decoder_layers(self.model)

    def _match_names(self) -> None:
        """Which parameter each tensor of the checkpoint goes to, by transformers' own rules."""
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

        renamings = [one for one in self._mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in self._mapping if isinstance(one, WeightConverter)]
        stacks = {
            one: converter.source_patterns
            for converter in converters
            if is_stack(converter)
            for one in converter.source_patterns
        }
        prefix = self.model.base_model_prefix
        for tensor in sorted(self.checkpoint.entries, key=dot_natural_key):
            name, pattern = rename_source_key(tensor, renamings, converters, prefix, self._wanted)
            if name not in self._wanted and tensor in self._wanted:
                name, pattern = rename_source_key(tensor, [], [], prefix, self._wanted)
            if name not in self._wanted:
                self.unexpected.add(tensor)
                continue
            self.sources.setdefault(name, {}).setdefault(pattern or "", []).append(tensor)
            if pattern or self.checkpoint.entries[tensor].dtype != self._wanted[name].dtype:
                self._converted.add(name)
            if pattern in stacks:
                self._stacked[name] = stacks[pattern]

    def _settle_names(self) -> None:
        """Take out what transformers lets be missing or unexpected, and what a converter or a tie provides."""
        ties = self.model.all_tied_weights_keys
        provided = {one for pair in ties.items() for one in pair if not self.missing.issuperset(pair)}
        for converter in self._mapping:
            patterns = [one.replace(r"\.", ".") for one in converter.target_patterns]
            if len(patterns) > 1:  # one tensor into several parameters: the first stands for all
                made = [name for name in self.sources if patterns[0] in name]
                provided |= {name.replace(patterns[0], other) for name in made for other in patterns[1:]}
        info = SimpleNamespace(missing_keys=self.missing - provided, unexpected_keys=self.unexpected)
        self.model._adjust_missing_and_unexpected_keys(info)
        self.missing, self.unexpected = info.missing_keys, info.unexpected_keys

    def load(self, names: Iterable[str]) -> None:
        """Put parameters in place, by name: mapped where the checkpoint has them as they are, else converted.

        Raises InputError naming those whose shape or form does not fit.
        """
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        names = list(names)
        plan = self.model._get_dtype_plan(self.dtype)
        stacked = [name for name in names if name in self._stacked and not plan]
        for name in stacked:
            self._put(name, self._stack(name))
        tensors = {
            tensor: self.checkpoint.read(tensor)
            for name in names
            if name not in stacked
            for tensors in self.sources.get(name, {}).values()
            for tensor in tensors
        }
        config = LoadStateDictConfig(
            dtype=self.dtype,
            dtype_plan=plan,
            device_map={"": self.device},
            weight_mapping=self._mapping,
        )
        info, _ = convert_and_load_state_dict_in_model(self.model, tensors, config)
        problems = [
            f"{self.folder}: {name} has shape {list(found)}, but the configuration asks for {list(expected)}"
            for name, found, expected in sorted(info.mismatched_keys)
        ]
        problems += [f"{self.folder}: {name}: {error}" for name, error in sorted(info.conversion_errors.items())]
        if problems:
            raise InputError(problems)

    def _stack(self, name: str) -> torch.Tensor:
        """A parameter (experts, rows, columns) made of the experts' own tensors, each copied once.

        What transformers' converters do in several steps, each of which takes as much memory as all of them.
        """
        made = torch.empty(self._wanted[name].shape, dtype=self._wanted[name].dtype, device=self.device)
        start = 0
        for tensors in (self.sources[name].get(pattern, []) for pattern in self._stacked[name]):
            pieces = [self.checkpoint.read(tensor) for tensor in tensors]
            rows = pieces[0].shape[0] if pieces else 0
            part = made[:, start : start + rows]
            if len(pieces) != len(made) or any(piece.shape != part.shape[1:] for piece in pieces):
                found = [list(piece.shape) for piece in pieces[:1]]
                raise InputError(
                    f"{self.folder}: {name} is made of {len(made)} tensors of shape {list(part.shape[1:])} for each "
                    f"part, found {len(pieces)} {found}"
                )
            for place, piece in zip(part, pieces, strict=True):
                place.copy_(piece)
            start += rows
        return made

    def tie(self) -> None:
        """Make tied parameters one, as the configuration says, once one of them is loaded."""
        self.model.tie_weights(missing_keys=set(self._wanted) - set(self.sources), recompute_mapping=False)

    def drop(self, names: Iterable[str]) -> None:
        """Take parameters out of the model again."""
        for name in names:
            self._put(name, self._wanted[name])
        give_back_freed_memory()

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        """Make a tensor a parameter; buffers stay."""
        owner, _, own = name.rpartition(".")
        module = self.model.get_submodule(owner)
        if module._parameters.get(own) is not None:
            module._parameters[own] = nn.Parameter(tensor, requires_grad=False)

    def name_of(self, module: nn.Module) -> str:
        return next(name for name, one in self.model.named_modules() if one is module)

    def within(self, module: str) -> list[str]:
        """The names of the parameters and buffers of a module."""
        return [name for name in self._wanted if name.startswith(module + ".")]

    def outside_layers(self) -> list[str]:
        return [name for name in self._wanted if not name.startswith(tuple(layer + "." for layer in self.layers))]

    def load_all(self) -> None:
        """Put every parameter in place. Those that are converted take memory; see `load_as_used`."""
        self.load(self._wanted)
        self.tie()

    def load_as_used(self) -> None:
        """Put in place what is mapped; layers with converted parameters load them when run, and drop them after."""
        lazy = {layer: names for layer in self.layers if self._converted.intersection(names := self.within(layer))}
        later = {name for names in lazy.values() for name in names}
        self.load(name for name in self._wanted if name not in later)
        self.tie()
        for layer, names in lazy.items():
            module = self.model.get_submodule(layer)
            module.register_forward_pre_hook(lambda *_, names=names: self.load(names))
            module.register_forward_hook(lambda *_, names=names: self.drop(names))


def give_back_freed_memory() -> None:
    """Have glibc return what is free: it keeps the holes that tensors leave between others."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def is_stack(converter) -> bool:
    """Whether a converter of transformers puts the experts' tensors on top of each other, and no more."""
    kinds = [(type(one).__name__, getattr(one, "dim", None)) for one in converter.operations]
    return len(converter.target_patterns) == 1 and kinds in (
        [("MergeModulelist", 0)],
        [("MergeModulelist", 0), ("Concatenate", 1)],
    )


def most_common_dtype(checkpoint: Checkpoint) -> torch.dtype:
    """The floating dtype that takes most of a checkpoint's bytes."""
    sizes: dict[torch.dtype, int] = {torch.float32: 0}
    for entry in checkpoint.entries.values():
        if entry.dtype.is_floating_point:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.end - entry.start
    return max(sizes, key=sizes.__getitem__)
