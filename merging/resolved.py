"""The parameters as each tensor has them, gradients and filters worked out: what is wrong between them."""

from __future__ import annotations

from collections.abc import Mapping

from merging.placement import Place
from merging.recipe import Recipe

SHOWN = 5  # lines about tensors


def settings_problems(recipe: Recipe, placed: Mapping[str, Place]) -> list[str]:
    """A line for each combination of parameters that the method cannot work with, naming a tensor that has it."""
    found: dict[str, str] = {}
    seen = set()
    for name, place in placed.items():
        shared = recipe.shared(name, place.t, place.slice)
        experts = recipe.experts_of(place.entries)
        settings = [recipe.settings(one, place.source(one, name), place.t, place.slice) for one in experts]
        if (key := repr((shared, settings))) in seen:
            continue
        seen.add(key)
        if problem := recipe.method.check(shared, settings):
            found.setdefault(problem, f"parameters: {problem} (tensor {name})")
    lines = list(found.values())
    more = [f"parameters: and {len(lines) - SHOWN} more combinations that do not fit"] if lines[SHOWN:] else []
    return lines[:SHOWN] + more
