"""The merge itself: preflight, the weights in one reading, postflight, renamed into place when whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.card import write_card
from merging.digest import file_sha256, json_digest, model_digest, model_files
from merging.errors import InputError
from merging.output import OutputFolder
from merging.placement import Place
from merging.postflight import postflight
from merging.preflight import Plan, preflight
from merging.recipe import Recipe
from merging.stream import Job, Part, Stream, Target, workers
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
    shard_size: int | None = None,
) -> dict:
    """Merge into the folder `out`, which must not exist or be empty.

    `models` gives the folder of each of `recipe.inputs`; `statistics` the activation statistics AIM needs; `digests`
    the inputs' model digests where they are known (they are computed otherwise: one reading of the files).
    `progress(done, total, tensor)` is called after each tensor; `metadata` is shown on the model card; `shard_size` is
    the most bytes of weights in a file (None: one file).

    Returns files (as `model_files`), tensors, bytes_read, bytes_written, seconds, notes, and delta_norms: the L2 norm
    of output - base by block of the model (empty where no base is read). Raises InputError, with nothing left behind:
    see `preflight`; also for a weight that is not finite, naming model and tensor. A merge that was interrupted goes on
    from its finished files when it is called again.
    """
    every = merge_many(
        [recipe],
        [out],
        models=models,
        statistics=statistics,
        progress=progress,
        metadata=[metadata or {}],
        digests=digests,
        shard_size=shard_size,
    )
    return every[0]


@dataclass
class Merge:
    """A recipe on its way to its folder."""

    recipe: Recipe
    plan: Plan
    folder: OutputFolder
    target: Target


def merge_many(
    recipes: Sequence[Recipe],
    outs: Sequence[str | Path],
    *,
    models: Mapping[str, Path],
    statistics: Path | None = None,
    progress: Progress | None = None,
    metadata: Sequence[Mapping] | None = None,
    digests: Mapping[str, str] | None = None,
    shard_size: int | None = None,
) -> list[dict]:
    """Merge several recipes, each into its folder, reading shared inputs once.

    As `merge` otherwise, with `metadata` and the result for each recipe.

    Recipes that differ in AIM or output dtype alone share the merge as well. Those with another base, or that read
    their inputs in another dtype, take a reading of their own. `metadata` has an entry for each recipe.
    """
    started = time.perf_counter()
    plans = all_plans(recipes, models, statistics)
    refuse_full_disk(outs, plans)
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe.inputs))
    identities = all_digests(names, models, digests or {})
    merges: list[Merge] = []
    try:
        for recipe, plan, out in zip(recipes, plans, outs, strict=True):
            key = merge_key(recipe, identities, statistics, shard_size)
            folder = OutputFolder(Path(out), key, plan.outputs, shard_size)
            todo = {name: plan.outputs[name] for name in folder.todo()}
            omega = recipe.aim.omega if recipe.aim else None
            merges.append(Merge(recipe, plan, folder, Target(todo, folder.put, omega, plan.statistics)))
        write_weights(merges, identities, progress)
        shown = metadata or [{}] * len(merges)
        return [finish(one, identities, about, started) for one, about in zip(merges, shown, strict=True)]
    except InputError:
        for one in merges:
            one.folder.discard()
        raise
    except BaseException:
        for one in merges:
            one.folder.release()
        raise


def all_digests(names: Sequence[str], models: Mapping[str, Path], given: Mapping[str, str]) -> dict[str, str]:
    """The inputs' model digests: those given, the others computed side by side."""
    missing = [name for name in names if name not in given]
    with ThreadPoolExecutor(workers()) as pool:
        files = pool.map(model_files, [models[name] for name in missing])
        found = dict(zip(missing, map(model_digest, files), strict=True))
    return {name: found[name] if name in found else given[name] for name in names}


def all_plans(recipes: Sequence[Recipe], models: Mapping[str, Path], statistics: Path | None) -> list[Plan]:
    """The plan of every recipe. Raises InputError with every problem of all of them, each once."""
    plans, problems = [], []
    for recipe in recipes:
        try:
            plans.append(preflight(recipe, models, statistics=statistics))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return plans


def refuse_full_disk(outs: Sequence[str | Path], plans: Sequence[Plan]) -> None:
    """Raises InputError if the outputs do not fit where they go."""
    needed: dict[Path, int] = {}
    for out, plan in zip(outs, plans, strict=True):
        place = next(parent for parent in Path(out).absolute().parents if parent.exists())
        needed[place] = needed.get(place, 0) + plan.bytes_written
    for place, size in needed.items():
        free = shutil.disk_usage(place).free
        if size > free:
            raise InputError(f"{place}: {free} bytes are free, the merge writes {size}; make room or go elsewhere")


def merge_key(recipe: Recipe, identities: Mapping[str, str], statistics: Path | None, shard_size: int | None) -> str:
    """What is being made, so that only the same merge goes on from what one left."""
    calibration = None
    if recipe.aim:
        calibration = file_sha256(statistics or recipe.aim.statistics)
    return json_digest([recipe.digest(identities, calibration), shard_size])


def write_weights(merges: Sequence[Merge], identities: Mapping[str, str], progress: Progress | None) -> None:
    """Make every tensor that is not there yet, in as few readings of the inputs as the recipes allow."""
    total = sum(len(one.target.outputs) for one in merges)
    done = 0
    readings: dict[tuple, list[Merge]] = {}
    for one in merges:
        layers = json_digest([slice.length for slice in one.recipe.slices or []])
        readings.setdefault((one.recipe.frame, one.recipe.dtype, layers), []).append(one)

    for together in readings.values():
        models = {name: model for one in together for name, model in one.plan.models.items()}
        first = together[0].recipe

        def finished(name: str, together=together) -> None:
            nonlocal done
            for one in together:
                if name in one.target.outputs:
                    one.folder.finish(name, one.target.squares.get(name))
                    done += 1
            if progress:
                progress(done, total, name)

        every = list(together[0].plan.outputs)
        floats = [name for name in sorted(every) if together[0].plan.outputs[name].dtype.is_floating_point]
        todo = {name for one in together for name in one.target.outputs}
        half = first.dtype if first.dtype in ("bfloat16", "float16") else None
        stream = Stream(
            models,
            first.frame,
            {name: output.shape for name, output in together[0].plan.outputs.items()},
            jobs_of(together, identities),
            getattr(torch, first.compute_dtype),
            getattr(torch, half) if half else None,
        )
        if todo:
            stream.make([name for name in floats if name in todo], floats, finished)
        for name in sorted(todo - set(floats)):
            value = agreed(together[0].plan, name)
            for one in together:
                if name in one.target.outputs:
                    one.folder.put(name, value, 0)
            finished(name)


def jobs_of(merges: Sequence[Merge], identities: Mapping[str, str]) -> list[Job]:
    """The distinct merges among recipes, each with its targets."""
    jobs: dict[str, Job] = {}
    for one in merges:
        recipe = one.recipe
        said = recipe.model_dump(exclude={"aim", "out_dtype", "chat_template", "random_seed"})
        key = json_digest([said, recipe.random_seed if recipe.method.random else None])
        if key not in jobs:
            parts = {name: part_of(recipe, name, place, identities) for name, place in one.plan.places.items()}
            jobs[key] = Job(recipe.method, recipe.random_seed, parts)
        jobs[key].targets.append(one.target)
    return list(jobs.values())


def part_of(recipe: Recipe, name: str, place: Place, identities: Mapping[str, str]) -> Part:
    """What an output tensor is merged from.

    The experts are summed in the order of their digests and parameters, so that the recipe's order changes no byte.
    """
    experts = recipe.experts_of(place.entries)
    if recipe.symmetric:
        experts = sorted(
            experts, key=lambda entry: json_digest(recipe.identity(entry, identities[entry.model], place.slice))
        )
    base = None
    if recipe.works_on_deltas:
        listed = [entry for entry in place.entries if entry.model == recipe.base_model]
        base = (recipe.base_model, place.source(listed[0], name) if listed else name)
    return Part(
        experts=[(entry.model, place.source(entry, name)) for entry in experts],
        keys=[identities[entry.model] for entry in experts],
        base=base,
        shared=recipe.shared(name, place.t, place.slice),
        settings=[recipe.settings(entry, place.source(entry, name), place.t, place.slice) for entry in experts],
    )


def agreed(plan: Plan, name: str) -> torch.Tensor:
    """A tensor of integers, which cannot be merged: all models must agree on it."""
    place = plan.places[name]
    sources = [(plan.models[entry.model], place.source(entry, name)) for entry in place.entries]
    if place.slice is None:
        sources += [(model, name) for model in plan.models.values()]
    model, source = sources[0]
    value = model.checkpoint.read(model.stored(source))
    for other, source in sources[1:]:
        if not torch.equal(other.checkpoint.read(other.stored(source)), value):
            raise InputError(f"{other.checkpoint.folder}: integer tensor {source} differs from {model.name}'s")
    return value


def finish(one: Merge, identities: Mapping[str, str], metadata: Mapping, started: float) -> dict:
    """What stands around the weights, the card, the checks, the rename. What `merge` returns."""
    folder, plan = one.folder.partial, one.plan
    one.folder.write_index()
    copy_surroundings(plan, one.recipe, folder)
    files = model_files(folder)
    norms = norms_by_block(one.folder.squares())
    write_card(folder, one.recipe, plan, identities, model_digest(files), norms, metadata)
    postflight(folder)
    one.folder.publish()
    return {
        "files": files,
        "tensors": plan.tensors,
        "bytes_read": plan.bytes_read,
        "bytes_written": sum(file["size"] for file in files.values()),
        "seconds": time.perf_counter() - started,
        "notes": plan.notes,
        "delta_norms": norms,
    }


def norms_by_block(squares: Mapping[str, float]) -> dict[str, float]:
    """L2 norms by block of the model, from sums of squares by tensor."""
    sums: dict[str, float] = {}
    for name in sorted(squares):
        block = block_of(name)
        sums[block] = sums.get(block, 0.0) + squares[name]
    return {block: value**0.5 for block, value in sums.items()}


def block_of(name: str) -> str:
    """The block of the model a tensor is part of: its decoder layer, or its module."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name.removesuffix(".weight")
