"""What must be known of several merges, and made ready, before the first weight is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from merging import aim, lambdas
from merging.digest import file_sha256, json_digest, model_digest, model_files
from merging.errors import InputError
from merging.finishing import Factor, Target
from merging.jobs import Merge
from merging.output import OutputFolder
from merging.preflight import Plan, preflight
from merging.recipe import Recipe
from merging.stream import workers


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
    """Raises InputError where AIM's or ACM's statistics are of other models than those that are merged."""
    problems = []
    for recipe, plan in zip(recipes, plans, strict=True):
        problems += aim.digest_problems(recipe, plan.statistics, identities)
        problems += lambdas.digest_problems(recipe, plan.lambdas, identities)
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
    relaxed = aim.factors(plan.statistics.vectors, recipe.aim.omega, plan.outputs) if recipe.aim else None
    if not recipe.acm or recipe.acm_by_expert:
        return relaxed
    scaled = plan.lambdas.factor
    if not relaxed:
        return scaled

    def both(name: str) -> Factor:
        found = relaxed(name)
        return scaled(name) if found is None else found * scaled(name)

    return both
