"""The merge itself: preflight, the weights in one reading, postflight, renamed into place when whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from merging.card import norms_by_block, write_card
from merging.digest import model_digest, model_files
from merging.disk import refuse_full_disk
from merging.errors import InputError
from merging.jobs import Merge, agreed, jobs_of, readings
from merging.output import settled
from merging.postflight import postflight
from merging.preparation import all_digests, all_plans, open_merge, refuse_missing_device, refuse_other_models
from merging.recipe import Recipe
from merging.stream import Stream
from merging.surroundings import copy_surroundings, refuse_lost_files

Progress = Callable[[int, int, str], None]


def merge(
    recipe: Recipe,
    out: str | Path,
    *,
    models: Mapping[str, Path],
    statistics: Path | None = None,
    consensus: Mapping[str, Path] | None = None,
    progress: Progress | None = None,
    metadata: Mapping | None = None,
    digests: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    device: str = "cpu",
) -> dict:
    """Merge into the folder `out`, which must not exist or be empty.

    `models` gives the folder of each of `recipe.inputs`; `statistics` the activation statistics AIM needs;
    `consensus` the mutual information ACM needs for each of `recipe.measured`; `digests` the inputs' model digests
    where they are known (they are computed otherwise: one reading of the files).
    `progress(done, total, tensor)` is called after each tensor; `metadata` is shown on the model card; `shard_size` is
    the most bytes of weights in a file (None: one file); `device` is where torch computes ("cpu", "cuda").

    Returns files (as `model_files`), tensors, bytes_read, bytes_written, seconds, notes, and delta_norms: the L2 norm
    of output - base by block of the model (empty where no base is read); with ACM also lambdas, by
    model and module, and lengths, the statistics of the samples' tokens. Raises InputError, with nothing left behind:
    see `preflight`; also for a weight that is not finite, naming model and tensor. TransientError where another merge
    is writing `out`. A merge that was interrupted goes on from its finished files when it is called again.
    """
    [found] = merge_many(
        [recipe],
        [out],
        models=models,
        statistics=statistics,
        consensus=[consensus],
        progress=progress,
        metadata=[metadata or {}],
        digests=digests,
        shard_size=shard_size,
        device=device,
    )
    if isinstance(found, InputError):
        raise found
    return found


def merge_many(
    recipes: Sequence[Recipe],
    outs: Sequence[str | Path],
    *,
    models: Mapping[str, Path],
    statistics: Path | None = None,
    consensus: Sequence[Mapping[str, Path] | None] | None = None,
    progress: Progress | None = None,
    metadata: Sequence[Mapping] | None = None,
    digests: Mapping[str, str] | None = None,
    shard_size: int | None = None,
    device: str = "cpu",
    done: Callable[[int, dict | InputError], None] | None = None,
) -> list[dict | InputError]:
    """Merge several recipes, each into its folder, reading shared inputs once.

    As `merge` otherwise, with an entry of `consensus` and `metadata` for each recipe. A result that is refused (its
    weights overflowed, it does not load) takes its folder with it and spares the others: its place has the InputError.
    Whatever is wrong with the inputs is raised, and only what had its folder's name by then remains.

    Recipes that differ in AIM, ACM (unless that is by expert) or output dtype alone share the merge as well. Those with
    another base, or that read their inputs in another dtype, take a reading of their own. `done(index, result)` is
    called in this thread when a folder has its name or was refused, while others may still be under way.
    """
    started = time.perf_counter()
    outs = [settled(out) for out in outs]
    refuse_missing_device(device)
    measured = consensus or [None] * len(recipes)
    plans = all_plans(recipes, models, statistics, measured)
    refuse_full_disk(outs, recipes, plans)
    identities = all_digests(recipes, models, digests or {})
    refuse_other_models(recipes, plans, identities)
    merges: list[Merge] = []
    results: dict[int, dict | InputError] = {}
    try:
        for recipe, plan, out, files in zip(recipes, plans, outs, measured, strict=True):
            merges.append(open_merge(recipe, plan, out, identities, statistics, files, shard_size, device))
        count = Count(sum(len(one.target.outputs) for one in merges), progress)
        for together in readings(merges):
            try:
                write_weights(together, identities, count)
            except InputError:
                for one in merges:
                    one.folder.discard()
                raise
            for one in together:
                index = merges.index(one)
                results[index] = finish_or_discard(one, identities, metadata[index] if metadata else {}, started)
                if done:
                    done(index, results[index])
    finally:
        for one in merges:
            one.folder.release()
    return [results[index] for index in range(len(merges))]


class Count:
    """How many tensors are done, told to `progress`."""

    def __init__(self, total: int, progress: Progress | None):
        self.done, self.total, self.progress = 0, total, progress

    def tell(self, name: str, more: int) -> None:
        self.done += more
        if self.progress:
            self.progress(self.done, self.total, name)


def write_weights(merges: Sequence[Merge], identities: Mapping[str, str], count: Count) -> None:
    """Make every tensor that is not there yet of the merges of one reading."""
    todo = {name for one in merges for name in one.target.outputs}
    first = merges[0]

    def finished(name: str) -> None:
        takers = [one for one in merges if name in one.target.outputs]
        for one in takers:
            one.folder.finish(name, one.target.squares.get(name))
        count.tell(name, len(takers))

    outputs = first.plan.outputs
    floats = [name for name in sorted(outputs) if outputs[name].dtype.is_floating_point]
    half = first.recipe.dtype if first.recipe.dtype in ("bfloat16", "float16") else None
    if todo:
        stream = Stream(
            {name: model for one in merges for name, model in one.plan.models.items()},
            first.recipe.frame,
            {name: output.shape for name, output in outputs.items()},
            jobs_of(merges, identities),
            getattr(torch, first.recipe.compute_dtype),
            getattr(torch, half) if half else None,
            device=first.device,
        )
        stream.make([name for name in floats if name in todo], floats, finished)
    for name in sorted(todo - set(floats)):
        for one in merges:
            if name in one.target.outputs:
                one.folder.put(name, agreed(one.plan, name), 0)
        finished(name)


def finish_or_discard(
    one: Merge, identities: Mapping[str, str], metadata: Mapping, started: float
) -> dict | InputError:
    """What `finish` returns; or why this result is refused, its folder gone."""
    try:
        return finish(one, identities, metadata, started)
    except InputError as error:
        one.folder.discard()
        return error


def finish(one: Merge, identities: Mapping[str, str], metadata: Mapping, started: float) -> dict:
    """What stands around the weights, the card, the checks, the rename. What `merge` returns."""
    folder, plan = one.folder.partial, one.plan
    one.folder.write_index()
    copy_surroundings(plan, one.recipe, folder)
    refuse_lost_files(plan, one.recipe, folder)
    files = model_files(folder)
    norms = norms_by_block(one.folder.squares())
    write_card(one, identities, model_digest(files), norms, metadata)
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
        **(plan.lambdas.report() if plan.lambdas else {}),
    }
