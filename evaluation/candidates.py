"""A study becomes candidates: every combination of experts x method setting x way of informing, each one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    recipe: Recipe


def expand(study: Study, references: Mapping[str, str] | None = None) -> list[Candidate]:
    """Every candidate of the study, in an order that the file alone decides.

    `references` maps the study's model names (`base` and the experts) to what the recipes call them;
    by default the sources in the file.
    """
    references = references or study.sources
    return [
        _candidate(study, references, combination, grid.merge_method, parameters, omega)
        for combination in study.expert_combinations()
        for grid in study.methods
        for parameters in grid.points()
        for omega in _omegas(study)
    ]


def _omegas(study: Study) -> list[float | None]:
    """None stands for the plain merge."""
    return [omega for informed in study.informed for omega in (informed.aim.omega if informed.aim else [None])]


def _candidate(
    study: Study,
    references: Mapping[str, str],
    combination: tuple[str, ...],
    method: str,
    parameters: dict[str, Any],
    omega: float | None,
) -> Candidate:
    recipe: dict[str, Any] = {
        "merge_method": method,
        "base_model": references["base"],
        "models": [{"model": references[expert]} for expert in combination],
        "parameters": parameters,
        "random_seed": study.seed,
    }
    if omega is not None:
        recipe["aim"] = {"omega": omega}
    return Candidate(
        name=f"{label(method, parameters, omega)} {'+'.join(combination)}",
        method=method,
        parameters=parameters,
        combination=combination,
        informed="plain" if omega is None else "aim",
        omega=omega,
        recipe=Recipe.parse(recipe),
    )


def label(method: str, parameters: Mapping[str, Any], omega: float | None) -> str:
    """A merge in a few characters: `ties(d=0.5)+aim(w=0.4)`; only what the study sets is shown."""
    declared = METHODS[method].parameters
    shown = ",".join(f"{declared[key].symbol}={_short(value)}" for key, value in parameters.items())
    informed = "" if omega is None else f"+aim(w={_short(omega)})"
    return f"{method}({shown}){informed}" if shown else f"{method}{informed}"


def _short(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
