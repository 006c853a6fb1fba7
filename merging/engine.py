"""The merge itself: preflight, tensor by tensor, postflight, renamed into place when whole."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from merging import aim
from merging.card import write_card
from merging.checkpoint import SINGLE, Writer
from merging.digest import json_digest, model_digest, model_files
from merging.errors import InputError
from merging.methods import Group
from merging.postflight import postflight
from merging.preflight import Model, Plan, preflight
from merging.recipe import ModelEntry, Recipe
from merging.surroundings import copy_surroundings

Progress = Callable[[int, int, str], None]


def merge(
    recipe: Recipe,
    out: str | Path,
    *,
    models: Mapping[str, Path],
    statistics: Path | None = None,
    progress: Progress | None = None,
    metadata: Mapping | None = None,
    digests: Mapping[str, str] | None = None,
) -> dict:
    """Merge into the folder `out`, which must not exist or be empty.

    `models` gives the folder of each of `recipe.inputs`; `statistics` the activation statistics AIM needs; `digests`
    the inputs' model digests where they are known (they are computed otherwise: one reading of the files).
    `progress(done, total, tensor)` is called after each tensor; `metadata` is shown on the model card.

    Returns files (as `model_files`), tensors, bytes_read, bytes_written, seconds, notes, and delta_norms: the L2 norm
    of output - base by block of the model (empty where no base is read). Raises InputError, with nothing left behind:
    see `preflight`; also for a weight that is not finite, naming model and tensor.
    """
    started = time.perf_counter()
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: holds something already; name a new folder or empty this one")
    plan = preflight(recipe, models, statistics=statistics)
    digests = digests or {}
    identities = {name: digests.get(name) or model_digest(model_files(models[name])) for name in recipe.inputs}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        norms = write_weights(plan, recipe, identities, partial / SINGLE, progress)
        copy_surroundings(plan, recipe, partial)
        files = model_files(partial)
        write_card(partial, recipe, plan, identities, model_digest(files), norms, metadata or {})
        postflight(partial)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return {
        "files": files,
        "tensors": plan.tensors,
        "bytes_read": plan.bytes_read,
        "bytes_written": sum(file["size"] for file in files.values()),
        "seconds": time.perf_counter() - started,
        "notes": plan.notes,
        "delta_norms": norms,
    }


def write_weights(
    plan: Plan, recipe: Recipe, identities: Mapping[str, str], path: Path, progress: Progress | None
) -> dict[str, float]:
    """Make every output tensor and append it to the file. The L2 norm of output - base by block."""
    experts = ordered_experts(recipe, identities)
    shared, settings = recipe.shared(), [recipe.settings(entry) for entry in experts]
    frame = plan.models[recipe.frame]

    def group(name: str) -> Group:
        needs_base = recipe.base_model and (recipe.method.needs_base or recipe.aim)
        return Group(
            name=name,
            base=load(plan, recipe, plan.models[recipe.base_model], name) if needs_base else None,
            experts=[load(plan, recipe, plan.models[entry.model], name) for entry in experts],
            shared=shared,
            settings=settings,
            keys=[identities[entry.model] for entry in experts],
            seed=recipe.random_seed,
        )

    survey = None
    floats = [name for name, output in plan.outputs.items() if output.dtype.is_floating_point]
    if recipe.method.survey:

        def groups() -> Iterator[Group]:
            return (group(name) for name in floats)

        survey = recipe.method.survey(groups, shared, settings)
    squares: dict[str, float] = {}
    described = {name: (output.dtype, output.shape) for name, output in plan.outputs.items()}
    with Writer(path, described) as writer, torch.no_grad():
        for done, name in enumerate(writer.names, start=1):
            if plan.outputs[name].dtype.is_floating_point:
                tensors = replace(group(name), survey=survey)
                merged = merge_tensor(plan, recipe, tensors)
                if tensors.base is not None:
                    block = block_of(name)
                    squares[block] = squares.get(block, 0.0) + float((merged - tensors.base).square().sum())
                merged = merged.to(plan.outputs[name].dtype)
            else:
                merged = agreed(plan, frame, name)
            writer.write(name, merged)
            if progress:
                progress(done, plan.tensors, name)
    return {block: square**0.5 for block, square in squares.items()}


def ordered_experts(recipe: Recipe, identities: Mapping[str, str]) -> list[ModelEntry]:
    """The experts in the order they are summed: by digest and settings, so that the recipe's order changes no byte."""
    if not recipe.method.symmetric:
        return recipe.experts
    return sorted(recipe.experts, key=lambda entry: (identities[entry.model], json_digest(recipe.settings(entry))))


def load(plan: Plan, recipe: Recipe, model: Model, name: str) -> torch.Tensor:
    """An input tensor in the compute dtype, its rows cut to the output's. Raises InputError if it is not finite."""
    tensor = model.checkpoint.read(model.stored(name))
    shape = plan.outputs[name].shape
    if shape and tensor.shape[0] > shape[0]:
        tensor = tensor[: shape[0]]
    if recipe.dtype in ("bfloat16", "float16"):
        tensor = tensor.to(getattr(torch, recipe.dtype))
    tensor = tensor.to(getattr(torch, recipe.compute_dtype))
    # a finite sum has finite terms; a sum that is not may merely have overflowed
    if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
        raise InputError(f"{model.checkpoint.folder}: tensor {name} holds NaN or Inf; this checkpoint is damaged")
    return tensor


def merge_tensor(plan: Plan, recipe: Recipe, group: Group) -> torch.Tensor:
    """One output tensor in the compute dtype: the method, then AIM where the recipe asks for it."""
    merged = recipe.method.merge(group)
    module = plan.outputs[group.name].module
    if recipe.aim and module:
        merged = aim.relax(group.base, merged, plan.statistics[module], recipe.aim.omega)
    return merged


def agreed(plan: Plan, frame: Model, name: str) -> torch.Tensor:
    """A tensor of integers, which cannot be merged: all models must agree on it."""
    value = frame.checkpoint.read(name)
    for model in plan.models.values():
        if not torch.equal(model.checkpoint.read(model.stored(name)), value):
            raise InputError(f"{model.checkpoint.folder}: integer tensor {name} differs from {frame.name}'s")
    return value


def block_of(name: str) -> str:
    """The block of the model a tensor is part of: its decoder layer, or its module."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name.removesuffix(".weight")
