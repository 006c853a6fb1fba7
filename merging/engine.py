"""The merge itself: preflight, the weights in one reading, postflight, renamed into place when whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from merging import aim
from merging.card import norms_by_block, write_card
from merging.digest import file_sha256, json_digest, model_digest, model_files
from merging.disk import refuse_full_disk
from merging.errors import InputError
from merging.finishing import Factor, Target
from merging.jobs import Merge, agreed, jobs_of, readings
from merging.lambdas import digest_problems
from merging.output import OutputFolder
from merging.postflight import postflight
from merging.preflight import Plan, preflight
from merging.recipe import Recipe
from merging.stream import Stream, workers
from merging.surroundings import copy_surroundings

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
    outs = [Path(out) for out in outs]
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
                about = metadata[index] if metadata else {}
                try:
                    results[index] = finish(one, identities, about, started)
                except InputError as error:
                    one.folder.discard()
                    results[index] = error
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


def refuse_missing_device(device: str) -> None:
    """Raises InputError if torch has no such device here."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device}: torch cannot use it here ({reason}); use cpu or auto") from None


def all_plans(
    recipes: Sequence[Recipe],
    models: Mapping[str, Path],
    statistics: Path | None,
    consensus: Sequence[Mapping[str, Path] | None],
) -> list[Plan]:
    """The plan of every recipe. Raises InputError with every problem of all of them, each once."""
    plans, problems = [], []
    for recipe, files in zip(recipes, consensus, strict=True):
        try:
            plans.append(preflight(recipe, models, statistics=statistics, consensus=files))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
    return plans


def all_digests(recipes: Sequence[Recipe], models: Mapping[str, Path], given: Mapping[str, str]) -> dict[str, str]:
    """The inputs' model digests: those given, the others computed side by side."""
    names = list(dict.fromkeys(name for recipe in recipes for name in recipe.inputs))
    missing = [name for name in names if name not in given]
    with ThreadPoolExecutor(workers()) as pool:
        files = pool.map(model_files, [models[name] for name in missing])
        found = dict(zip(missing, map(model_digest, files), strict=True))
    return {name: found[name] if name in found else given[name] for name in names}


def refuse_other_models(recipes: Sequence[Recipe], plans: Sequence[Plan], identities: Mapping[str, str]) -> None:
    """Raises InputError where ACM's statistics are of other models than those that are merged."""
    pairs = zip(recipes, plans, strict=True)
    problems = [p for recipe, plan in pairs for p in digest_problems(recipe, plan.lambdas, identities)]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


def open_merge(
    recipe: Recipe,
    plan: Plan,
    out: Path,
    identities: Mapping[str, str],
    statistics: Path | None,
    consensus: Mapping[str, Path] | None,
    shard_size: int | None,
    device: str,
) -> Merge:
    """A merge with its folder, and what an earlier one of the same has left to do."""
    calibration = file_sha256(statistics or recipe.aim.statistics) if recipe.aim else None
    measured = None
    if recipe.acm:
        files = consensus or recipe.acm.files(recipe.measured)
        measured = {model: file_sha256(files[model]) for model in recipe.measured}
    # a device enters the key though not the digest: its results differ within rounding, and shards must not mix
    key = json_digest([recipe.digest(identities, calibration, measured), shard_size, device])
    folder = OutputFolder(out, key, plan.outputs, shard_size)
    todo = {name: plan.outputs[name] for name in folder.todo()}
    target = Target(todo, folder.put, factor_of(recipe, plan))
    return Merge(recipe, plan, folder, target, calibration, measured, shard_size, device)


def factor_of(recipe: Recipe, plan: Plan) -> Callable[[str], Factor] | None:
    """What AIM and ACM together multiply a tensor's change by, given its name; None where the recipe has neither."""
    relaxed = aim.factors(plan.statistics, recipe.aim.omega, plan.outputs) if recipe.aim else None
    if not recipe.acm or recipe.acm_by_expert:
        return relaxed
    scaled = plan.lambdas.factor
    if not relaxed:
        return scaled

    def both(name: str) -> Factor:
        found = relaxed(name)
        return scaled(name) if found is None else found * scaled(name)

    return both


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
        value = agreed(first.plan, name)
        for one in merges:
            if name in one.target.outputs:
                one.folder.put(name, value, 0)
        finished(name)


def finish(one: Merge, identities: Mapping[str, str], metadata: Mapping, started: float) -> dict:
    """What stands around the weights, the card, the checks, the rename. What `merge` returns."""
    folder, plan = one.folder.partial, one.plan
    one.folder.write_index()
    copy_surroundings(plan, one.recipe, folder)
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
