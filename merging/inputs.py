"""The models of a merge, opened and compared: what keeps one from being merged with the one that forms the output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from merging.checkpoint import Checkpoint
from merging.digest import is_model_file
from merging.errors import InputError
from merging.layers import at_layer
from merging.links import stays_inside
from merging.placement import Place
from merging.vocabulary import HEAD, embedding_of, has_token_rows, is_tied
from merging.vocabulary.token_rows import TokenRows
from merging.vocabulary.tokenizer import read_tokenizer
from merging.yaml_file import NOT_YAML

SHOWN = 5  # lines about tensors per model; hundreds would say no more
SAME_IN_CONFIG = ("model_type", "num_attention_heads", "num_key_value_heads")
IGNORED = ("rotary_emb.inv_freq", ".masked_bias")  # buffers old checkpoints carry and the model makes itself


@dataclass(frozen=True)
class Model:
    """An input, opened: its checkpoint, config, and the tensors that count (a tied head is its embedding).

    With `token_rows`, its rows of tokens are matched with the output's: `tensors` has the shapes they have then.
    """

    name: str
    checkpoint: Checkpoint
    config: dict
    tied: bool
    tensors: dict[str, tuple[int, ...]]
    token_rows: TokenRows | None = None

    @property
    def table(self) -> int:
        """How many rows its embedding and head have, as they are stored; 0 where one is empty or there is neither."""
        rows = [sum(entry.shape[:1]) for name, entry in self.checkpoint.entries.items() if has_token_rows(name)]
        return max(rows) if rows and all(rows) else 0

    def matched(self, token_rows: TokenRows) -> Model:
        """This model with its rows of tokens as the output has them."""
        rows = len(token_rows.index)
        tensors = {n: (rows, *shape[1:]) if has_token_rows(n) and shape else shape for n, shape in self.tensors.items()}
        return replace(self, tensors=tensors, token_rows=token_rows)

    def stored(self, tensor: str) -> str:
        """The name a tensor is stored under: a tied model keeps its head as the embedding."""
        return embedding_of(self.tensors) if tensor == HEAD and self.tied else tensor

    def rows(self, tensor: str, first: int, end: int) -> torch.Tensor:
        """The rows [first, end) of a tensor of the output, in the dtype it is stored in; a scalar as it is.

        Backed by the file's pages, where it needs no gathering: do not write to it.
        """
        stored = self.stored(tensor)
        if self.token_rows and has_token_rows(stored) and self.checkpoint.entries[stored].shape:
            return self.token_rows.take(stored, self.checkpoint.read(stored), first, end)
        return self.checkpoint.rows(stored, first, end)


def open_model(name: str, folder: Path) -> Model:
    """An input's config and headers. Raises InputError with what is wrong with either."""
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder: {folder}")
    refuse_links(folder)
    problems, config, checkpoint = [], {}, None
    try:
        config = read_config(folder / "config.json")
    except InputError as error:
        problems += error.problems
    try:
        checkpoint = Checkpoint(folder)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    tied = is_tied(config, checkpoint.entries)
    tensors = {
        tensor: entry.shape
        for tensor, entry in checkpoint.entries.items()
        if not tensor.endswith(IGNORED) and not (tied and tensor == HEAD)
    }
    if not any(checkpoint.entries[tensor].dtype.is_floating_point for tensor in tensors):
        raise InputError(f"{folder}: none of its tensors are floating point; there is nothing to merge")
    return Model(name, checkpoint, config, tied, tensors)


def refuse_links(folder: Path) -> None:
    """Raises InputError for files of a model that are links out of its folder: a merge would copy what they lead to."""
    problems = [
        f"{path}: is a link that leaves the folder; put the file itself there"
        for path in sorted(folder.rglob("*"))
        if is_model_file(path.relative_to(folder).as_posix()) and not stays_inside(folder, path)
    ]
    if problems:
        raise InputError(problems)


def read_config(path: Path) -> dict:
    """A model's config.json. Raises InputError naming the file."""
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{path}: names no model_type; is this a transformers model?")
    if config.get("quantization_config"):
        raise InputError(f"{path}: the model is quantised; merge the weights it was quantised from")
    return config


def config_problems(frame: Model, model: Model) -> list[str]:
    """Why a model's architecture does not fit the one that gives the output its form."""
    where = model.checkpoint.folder
    ours, theirs = frame.config.get("architectures"), model.config.get("architectures")
    if ours != theirs or frame.config["model_type"] != model.config["model_type"]:
        return [
            f"{where}: architecture {theirs} ({model.config['model_type']}), but {frame.name} has "
            f"{ours} ({frame.config['model_type']}); only models of one architecture can be merged"
        ]
    problems = [
        f"{where}: {key} is {model.config.get(key)}, but {frame.config.get(key)} in {frame.name}"
        for key in SAME_IN_CONFIG
        if frame.config.get(key) != model.config.get(key)
    ]
    if frame.tied and not model.tied:
        problems.append(
            f"{where}: has a {HEAD} of its own, but {frame.name} ties its head to its embedding; untie the base first"
        )
    return problems


def stack_problems(frame: Model, opened: Mapping[str, Model], placed: Mapping[str, Place]) -> list[str]:
    """What the slices ask for that a model does not have, or in another shape."""
    lines: list[str] = []
    for name, place in placed.items():
        for entry in place.entries:
            model, source = opened.get(entry.model), place.source(entry, name)
            if model is None:
                continue
            if source not in model.tensors and not (source == HEAD and model.tied):
                lines.append(f"{model.checkpoint.folder}: tensor {source} is missing; a slice takes it as {name}")
            elif source in model.tensors:
                lines += shape_problem(frame, model, like(frame, name), source)
    return lines[:SHOWN] + ([f"slices: and {len(lines) - SHOWN} more tensors that do not fit"] if lines[SHOWN:] else [])


def like(frame: Model, name: str) -> str:
    """The frame's own tensor that an output tensor is like: a stack can have more layers than the frame."""
    return name if name in frame.tensors else at_layer(name, 0)


def differences(frame: Model, model: Model) -> list[str]:
    """Why a model cannot be merged whole with the one that gives the output its form."""
    where = model.checkpoint.folder
    problems = config_problems(frame, model)
    if problems and "architecture" in problems[0]:
        return problems
    available = set(model.tensors) | ({HEAD} if model.tied else set())
    missing = sorted(set(frame.tensors) - available)
    extra = sorted(set(model.tensors) - set(frame.tensors) - {HEAD})
    lines = [f"{where}: tensor {tensor} is missing; {frame.name} has it" for tensor in missing]
    lines += [f"{where}: tensor {tensor} is not in {frame.name}" for tensor in extra]
    for tensor in sorted(set(frame.tensors) & available):
        lines += shape_problem(frame, model, tensor, tensor)
    more = [f"{where}: and {len(lines) - SHOWN} more tensors that do not fit"] if len(lines) > SHOWN else []
    return problems + lines[:SHOWN] + more


def shape_problem(frame: Model, model: Model, ours: str, tensor: str) -> list[str]:
    """A line if a tensor's shape or kind is not that of `ours`; extra rows for added tokens fit, they are cut."""
    mine, theirs = frame.tensors[ours], model.tensors[model.stored(tensor)]
    cut = theirs
    if has_token_rows(tensor) and len(mine) == len(theirs) and theirs[0] > mine[0]:
        cut = (mine[0], *theirs[1:])
    where = model.checkpoint.folder
    if mine != cut:
        return [f"{where}: tensor {tensor} has shape {list(theirs)}, but {list(mine)} in {frame.name}"]
    kinds = [
        entries[name].dtype.is_floating_point
        for entries, name in (
            (frame.checkpoint.entries, frame.stored(ours)),
            (model.checkpoint.entries, model.stored(tensor)),
        )
    ]
    if kinds[0] != kinds[1]:
        return [f"{where}: tensor {tensor} is {'float' if kinds[1] else 'integer'}, but not in {frame.name}"]
    return []


def token_notes(frame: Model, models: Iterable[Model]) -> list[str]:
    """Notes where a tokenizer gives a row of the embedding another token than the frame's: rows go by position."""
    mine, notes = token_by_id(frame.checkpoint.folder), []
    for model in models:
        theirs = token_by_id(model.checkpoint.folder)
        different = [(index, token) for index, token in mine.items() if theirs.get(index, token) != token]
        if different:
            index, token = min(different)
            notes.append(
                f"{model.name}: {len(different)} token ids stand for other tokens than in {frame.name} (id {index}: "
                f"{theirs[index]!r}, not {token!r}); rows are merged by position, with tokenizer_source: union by token"
            )
    return notes


def token_by_id(folder: Path) -> dict[int, str]:
    """Token by id; empty where there is no tokenizer.json or it is not understood (postflight loads it)."""
    try:
        return {index: token for token, index in read_tokenizer(folder).ids.items()}
    except InputError:
        return {}


def licence_notes(models: Mapping[str, Model]) -> list[str]:
    """A note where the inputs' model cards name different licences."""
    found = {name: licence(model.checkpoint.folder) for name, model in models.items()}
    named = {name: text for name, text in found.items() if text}
    if len(set(named.values())) < 2:
        return []
    return ["the inputs' licences differ: " + ", ".join(f"{name}: {text}" for name, text in named.items())]


def licence(folder: Path) -> str | None:
    """The licence in the front matter of a model's README.md."""
    try:
        front = (folder / "README.md").read_text().split("---")[1]
        found = yaml.safe_load(front).get("license")
    except (OSError, *NOT_YAML):
        return None
    return found if isinstance(found, str) else None
