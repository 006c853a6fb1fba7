"""A study becomes candidates: every combination of experts x method setting x way of informing, each one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from evaluation.informed import Way
from evaluation.study import Study
from merging.methods import METHODS
from merging.recipe import Recipe


@dataclass(frozen=True)
class Candidate:
    """A recipe of a study, with what a person compares candidates by."""

    name: str
    method: str
    parameters: Mapping[str, Any]
    combination: tuple[str, ...]
    informed: str
    omega: float | None
    t: float | None
    recipe: Recipe


def expand(study: Study, references: Mapping[str, str] | None = None) -> list[Candidate]:
    """Every candidate of the study, in an order that the file alone decides.

    `references` maps the study's model names (`base` and the experts) to what the recipes call them;
    by default the sources in the file.
    """
    references = references or study.sources
    ways = [way for informed in study.informed for way in informed.ways()]
    found: list[Candidate] = []
    for combination in study.expert_combinations():
        for grid in study.methods:
            method = grid.merge_method
            for given, way in product(grid.points(), ways):
                replaced = way.replaces_parameters(method)
                one = _candidate(study, references, combination, method, {} if replaced else given, way)
                if not (replaced and one in found):
                    found.append(one)
    return found


def plain(candidate: Candidate) -> Candidate:
    """The same merge, not informed by activations."""
    name = f"{label(candidate.method, candidate.parameters, Way())} {'+'.join(candidate.combination)}"
    recipe = candidate.recipe.model_copy(update={"aim": None, "acm": None})
    return replace(candidate, name=name, informed="plain", omega=None, t=None, recipe=recipe)


def _candidate(
    study: Study,
    references: Mapping[str, str],
    combination: tuple[str, ...],
    method: str,
    parameters: dict[str, Any],
    way: Way,
) -> Candidate:
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": references["base"],
        "models": [{"model": references[expert]} for expert in combination],
        "parameters": parameters,
        "random_seed": study.seed,
        **way.keys,
    }
    return Candidate(
        name=f"{label(method, parameters, way)} {'+'.join(combination)}",
        method=method,
        parameters=parameters,
        combination=combination,
        informed=way.name,
        omega=way.omega,
        t=way.t,
        recipe=Recipe.parse(recipe),
    )


def label(method: str, parameters: Mapping[str, Any], way: Way) -> str:
    """A merge in a few characters: `ties(d=0.5)+aim(w=0.4)`; only what the study sets is shown."""
    declared = METHODS[method].parameters
    shown = ",".join(f"{declared[key].symbol}={_short(value)}" for key, value in parameters.items())
    return f"{method}({shown}){way.label}" if shown else f"{method}{way.label}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
