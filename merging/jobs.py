"""What several recipes over the same inputs share: the readings of the weights, and the merges made in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from merging.digest import json_digest
from merging.errors import InputError
from merging.finishing import Target
from merging.lambdas import Lambdas
from merging.output import OutputFolder
from merging.placement import Place
from merging.preflight import Plan
from merging.recipe import Recipe
from merging.stream import Job, Part

TOKENIZER_KEYS = ("tokenizer_source", "tokenizer")  # all merges of a reading have the same rows


@dataclass(eq=False)
class Merge:
    """A recipe on its way to its folder.

    `calibration` is the sha256 of the statistics that AIM takes, `consensus` of those ACM takes, by measured model.
    """

    recipe: Recipe
    plan: Plan
    folder: OutputFolder
    target: Target
    calibration: str | None
    consensus: Mapping[str, str] | None
    shard_size: int | None
    device: str


def readings(merges: Iterable[Merge]) -> list[list[Merge]]:
    """The merges that one reading of the inputs makes: of one frame, one dtype, as many layers and one vocabulary."""
    found: dict[str, list[Merge]] = {}
    for one in merges:
        recipe = one.recipe
        layers = [slice.length for slice in recipe.slices or []]
        found.setdefault(json_digest([recipe.frame, recipe.dtype, layers, one.plan.matching.key]), []).append(one)
    return list(found.values())


def jobs_of(merges: Sequence[Merge], identities: Mapping[str, str]) -> list[Job]:
    """The distinct merges among recipes, each with its targets. `identities` are the inputs' digests."""
    jobs: dict[str, Job] = {}
    for one in merges:
        recipe = one.recipe
        aside = {"aim", "acm", "calibration", "out_dtype", "chat_template", "random_seed", *TOKENIZER_KEYS}
        said = recipe.model_dump(exclude=aside)
        lambdas = one.plan.lambdas if recipe.acm_by_expert else None
        own = lambdas.by_model if lambdas else None
        key = json_digest([said, own, recipe.random_seed if recipe.method.random else None])
        if key not in jobs:
            parts = {name: part_of(recipe, name, place, identities, lambdas) for name, place in one.plan.places.items()}
            jobs[key] = Job(recipe.method, recipe.random_seed, parts)
        jobs[key].targets.append(one.target)
    return list(jobs.values())


def part_of(
    recipe: Recipe, name: str, place: Place, identities: Mapping[str, str], lambdas: Lambdas | None = None
) -> Part:
    """What an output tensor is merged from.

    The experts are summed in the order of their digests and parameters, so that the recipe's order changes no byte.
    With `lambdas` (ACM-TA, task arithmetic) these take the place of every coefficient.
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
    shared = recipe.shared(name, place.t, place.slice)
    settings = [recipe.settings(entry, place.source(entry, name), place.t, place.slice) for entry in experts]
    if lambdas:
        shared |= {"lambda": 1.0, "normalize": False}
        weights = lambdas.weights([entry.model for entry in experts], name)
        settings = [own | {"weight": weight} for own, weight in zip(settings, weights, strict=True)]
    return Part(
        experts=[(entry.model, place.source(entry, name)) for entry in experts],
        keys=[identities[entry.model] for entry in experts],
        base=base,
        shared=shared,
        settings=settings,
    )


def agreed(plan: Plan, name: str) -> torch.Tensor:
    """A tensor of integers, which cannot be merged: all models must agree on it, else InputError."""
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
