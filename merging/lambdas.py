"""The lambdas of a recipe with ACM: read from its statistics, checked against its models, and by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from merging import acm
from merging.errors import InputError
from merging.recipe import MERGED, Recipe

SHOWN = 5  # lines about tensors per model


@dataclass(frozen=True)
class Lambdas:
    """Lambda by module, for each model that was measured against the base (see `Recipe.measured`)."""

    by_model: Mapping[str, Mapping[str, float]]
    measured: Mapping[str, acm.Consensus]

    def of(self, model: str, tensor: str) -> float:
        """The lambda of a model's tensor."""
        found = self.by_model[model]
        return found[acm.module_of(tensor, found)]

    def weights(self, models: list[str], tensor: str) -> list[float]:
        """ACM-TA's weights of the experts' deltas: `lambda_i / N`."""
        return [self.of(model, tensor) / len(models) for model in models]

    @property
    def factor(self) -> Callable[[str], float]:
        """What the change of a merged tensor is multiplied by."""
        return lambda tensor: self.of(MERGED, tensor)

    def report(self) -> dict[str, dict]:
        """The lambdas and length statistics as they go into a merge's result."""
        return {"lambdas": {model: dict(found) for model, found in self.by_model.items()}, "lengths": self.lengths}

    @property
    def lengths(self) -> dict[str, float]:
        """The length statistics of the calibration texts."""
        return acm.length_statistics(next(iter(self.measured.values())).lengths)


def read_lambdas(recipe: Recipe, given: Mapping[str, Path] | None, tensors: list[str]) -> tuple[Lambdas, list[str]]:
    """A recipe's lambdas, and what a person should know of them.

    `given` names the statistics of each model in `recipe.measured`; by default the recipe itself does. `tensors` are
    those to make. Raises InputError with what is missing.
    """
    files = given or recipe.acm.files(recipe.measured)
    problems, measured = [], {}
    for model in recipe.measured:
        if model not in files:
            problems.append(missing(recipe, model))
            continue
        try:
            measured[model] = acm.Consensus.load(files[model])
        except InputError as error:
            problems += error.problems
            continue
        modules = measured[model].information
        uncovered = [name for name in tensors if acm.module_of(name, modules) is None]
        problems += [
            f"{files[model]}: no mutual information for {name}; measure this base and this model"
            for name in uncovered[:SHOWN]
        ]
    if problems:
        raise InputError(problems)
    settings = recipe.acm
    by_model = {
        model: acm.controlled(acm.lambdas(found.information, settings.t), settings.control, recipe.random_seed)
        for model, found in measured.items()
    }
    notes = acm.direction_warnings(settings.t)
    notes += [note for found in measured.values() for note in acm.length_warnings(found.lengths)]
    return Lambdas(by_model, measured), list(dict.fromkeys(notes)) + coefficient_notes(recipe)


def missing(recipe: Recipe, model: str) -> str:
    against = "the plain merge" if model == MERGED else model
    return (
        f"acm: needs the mutual information of {recipe.base_model} and {against}; make it with `mergeflow consensus` "
        "and name the file as `statistics`, or say on what to measure it as `calibration`"
    )


def coefficient_notes(recipe: Recipe) -> list[str]:
    """A note where the recipe gives a coefficient that ACM replaces, or scales again."""
    scopes = [recipe.parameters, *(entry.parameters for entry in recipe.experts)]
    names = ["lambda"] if recipe.shared().get("normalize", True) else ["lambda", "weight"]
    found = [
        f"{name} {scope[name]!r}"
        for name in names
        for scope in scopes
        if name in recipe.method.parameters and scope.get(name, 1) != 1
    ]
    if not found:
        return []
    what = ", ".join(dict.fromkeys(found))
    if recipe.acm_by_expert:
        return [f"acm: {what} is not used: with {recipe.merge_method}, ACM's lambda takes its place"]
    return [f"acm: the merged delta already carries {what}, and ACM scales it again"]


def digest_problems(recipe: Recipe, found: Lambdas | None, identities: Mapping[str, str]) -> list[str]:
    """Statistics of other models than those that are merged; `identities` are the inputs' digests."""
    problems = []
    for model, measured in found.measured.items() if found else ():
        if measured.base != identities[recipe.base_model]:
            problems.append(f"acm: the statistics for {model} are of another base than {recipe.base_model}")
        if model != MERGED and measured.against != identities[model]:
            problems.append(f"acm: the statistics for {model} are of another model of that name; measure it again")
    return problems
