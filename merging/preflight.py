"""Everything that can be known to be wrong before a weight is read: configs, headers, tokenizers."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from merging import aim
from merging.chat_template import chat_template, chosen_template
from merging.digest import TOKENIZER_FILES
from merging.errors import InputError
from merging.inputs import (
    SHOWN,
    Model,
    config_problems,
    differences,
    licence_notes,
    like,
    open_model,
    stack_problems,
    token_notes,
)
from merging.lambdas import Lambdas, read_lambdas
from merging.placement import Place, places
from merging.recipe import Recipe
from merging.resolved import settings_problems
from merging.vocabulary.matching import Matching, match, unmatched

BLOCK = 1 << 17  # elements of a tensor that are merged at a time, if a row is no longer
IMPORTS = 200_000_000  # bytes of anonymous memory that python, torch and this take before a merge


@dataclass(frozen=True)
class Output:
    """A tensor to make: its dtype and shape, and the module whose statistics relax it (None: AIM leaves it)."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    module: str | None


@dataclass(frozen=True)
class Plan:
    """What a merge will do: tensors, bytes read and written, peak anonymous memory (an estimate, bytes), and notes.

    Two recipes with the same frame give their tensors the same shapes if they have the same `matching.key`.
    """

    tensors: int
    bytes_read: int
    bytes_written: int
    peak_memory: int
    matching: Matching
    notes: list[str] = field(default_factory=list)
    outputs: dict[str, Output] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    statistics: aim.Statistics | None = None
    lambdas: Lambdas | None = None


def preflight(
    recipe: Recipe,
    models: Mapping[str, Path],
    *,
    statistics: Path | None = None,
    consensus: Mapping[str, Path] | None = None,
) -> Plan:
    """The plan of a merge. Reads headers, configs and tokenizers only.

    `models` gives the folder of each of `recipe.inputs`; `statistics` is the file AIM needs (or `aim.statistics`),
    `consensus` that ACM needs for each of `recipe.measured` (or `acm.statistics`).
    Raises InputError with every problem at once.
    """
    problems: list[str] = []
    opened = {}
    for name in recipe.inputs:
        if name not in models:
            problems.append(f"{name}: no folder was given for this model")
            continue
        try:
            opened[name] = open_model(name, Path(models[name]))
        except InputError as error:
            problems += error.problems
    try:
        matching = match(recipe, opened)
    except InputError as error:
        problems += error.problems
        matching = unmatched(recipe, opened)
    opened, notes = matching.models, list(matching.notes)
    frame = opened.get(recipe.frame)
    placed = places(recipe, frame.tensors) if frame else {}
    if frame:
        others = [model for model in opened.values() if model is not frame]
        for model in others:
            problems += differences(frame, model) if not recipe.slices else config_problems(frame, model)
        notes += token_notes(frame, others) if matching.key is None else []
        problems += stack_problems(frame, opened, placed) if recipe.slices else []
        problems += settings_problems(recipe, placed)
        problems += disguised_base(recipe, models)
        notes += licence_notes(opened) + absence_notes(recipe, opened)
    if recipe.chat_template and not problems:
        try:
            chosen_template(recipe, opened)
        except InputError as error:
            problems += error.problems
    outputs = {name: output(recipe, frame, name) for name in placed} if not problems else {}
    measured = None
    if recipe.aim and not problems:
        try:
            measured = read_statistics(recipe, statistics, outputs)
            notes += statistics_notes(measured)
        except InputError as error:
            problems += error.problems
    lambdas = None
    if recipe.acm and not problems:
        try:
            lambdas, told = read_lambdas(recipe, consensus, floats(outputs))
            notes += told
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return plan(recipe, matching, placed, outputs, notes, measured, lambdas)


def disguised_base(recipe: Recipe, models: Mapping[str, Path]) -> list[str]:
    """A line for each expert that is the base's folder under another name: its delta would be 0."""
    base = recipe.base_model
    if not recipe.works_on_deltas or base not in models:
        return []
    same = Path(models[base]).resolve()
    others = [name for name in recipe.inputs if name != base and name in models]
    return [
        f"{name}: is the base {base} under another name, and would count as an expert; write it as {base}, or leave it"
        for name in others
        if Path(models[name]).resolve() == same
    ]


def absence_notes(recipe: Recipe, models: Mapping[str, Model]) -> list[str]:
    """A note on what none of the inputs has, so that the output lacks it too."""
    folders = [model.checkpoint.folder for model in models.values()]
    tokenizers = [name for name in TOKENIZER_FILES if "template" not in name]
    there = {
        "generation_config.json": any((folder / "generation_config.json").is_file() for folder in folders),
        "tokenizer": any((folder / name).is_file() for folder in folders for name in tokenizers),
        "chat template": bool(recipe.chat_template) or any(chat_template(folder) for folder in folders),
    }
    absent = [what for what, found in there.items() if not found]
    return [f"none of the inputs has a {' or a '.join(absent)}; neither has the output"] if absent else []


def floats(outputs: Mapping[str, Output]) -> list[str]:
    """The tensors that are merged; integers are only compared."""
    return [name for name, output in outputs.items() if output.dtype.is_floating_point]


def output(recipe: Recipe, frame: Model, name: str) -> Output:
    """The dtype, shape and AIM module of an output tensor."""
    own = like(frame, name)
    stored = frame.checkpoint.entries[own].dtype
    wanted = recipe.out_dtype or recipe.dtype
    dtype = getattr(torch, wanted) if wanted and stored.is_floating_point else stored
    module = aim.module_of(name, frame.tied) if recipe.aim and stored.is_floating_point else None
    return Output(dtype, frame.tensors[own], module)


def read_statistics(recipe: Recipe, path: Path | None, outputs: Mapping[str, Output]) -> aim.Statistics:
    """The statistics AIM needs, each vector of its tensor's width. Raises InputError with what is missing."""
    path = path or recipe.aim.statistics
    if path is None:
        raise InputError(
            "aim: needs activation statistics of the base; calibrate it and name the file as `statistics`, or say on "
            "what to calibrate it as `calibration`"
        )
    found = aim.read_statistics(path)
    vectors = found.vectors
    needed = {o.module: (name, o.shape[-1]) for name, o in outputs.items() if o.module and o.shape}
    problems = [
        f"{path}: module {module} has {len(vectors[module])} channels, {name} has {width}; calibrate this base again"
        for module, (name, width) in needed.items()
        if module in vectors and len(vectors[module]) != width
    ]
    problems += [
        f"{path}: no statistics of module {module}, which {name} needs; calibrate this base again"
        for module, (name, _) in needed.items()
        if module not in vectors
    ]
    if problems:
        raise InputError(problems[:SHOWN])
    return found


def statistics_notes(found: aim.Statistics) -> list[str]:
    """A note where nothing tells whether the statistics are the base's."""
    said = found.model is not None
    return [] if said else [f"aim: {found.file} does not say of which model it is; make sure that it is of the base"]


def plan(recipe: Recipe, matching: Matching, placed, outputs: dict[str, Output], notes, statistics, lambdas) -> Plan:
    """Sums over the outputs: bytes of every input once and of the output; memory for the blocks under way."""
    width = getattr(torch, recipe.compute_dtype).itemsize
    rows = [output.shape for output in outputs.values()] or [()]
    block = max(BLOCK, *(math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape) for shape in rows), 0)
    inputs = max((len(place.entries) for place in placed.values()), default=0) + 1
    return Plan(
        tensors=len(outputs),
        bytes_read=sum(model.checkpoint.bytes for model in matching.models.values()),
        bytes_written=sum(math.prod(o.shape) * o.dtype.itemsize for o in outputs.values()),
        peak_memory=IMPORTS + os.cpu_count() * (2 * inputs + 4) * block * width,
        notes=notes,
        outputs=outputs,
        models=matching.models,
        matching=matching,
        places=placed,
        statistics=statistics,
        lambdas=lambdas,
    )
