"""Mistakes in a study that only show when its parts are read together."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from evaluation.benchmark import check_benchmark, generates
from merging.errors import InputError
from merging.validation import suggest

if TYPE_CHECKING:
    from evaluation.study import Study

REQUIREMENT = re.compile(
    r"^\s*(?P<objective>[\w.-]+)\s*(?P<sign>>=|<=)\s*(?P<reference>[\w.-]+)(?:\s+(?P<shift>[+-]\s*\d+(?:\.\d+)?))?\s*$"
)
RESPONSE_TOKENS = "response_tokens"


def cross_check(study: Study, bad: set[Any]) -> list[str]:
    """Mistakes that only show when parts of the file are read together; parts among `bad` are left out."""
    checks = {
        _check_experts: {"experts"},
        _check_combinations: {"experts", "combinations"},
        _check_calibration: {"informed", "calibration"},
        _check_tasks: {"benchmarks"},
        _check_objectives: {"benchmarks", "objectives"},
        _check_length_reference: {"base", "experts", "objectives", "length_reference"},
        _check_requirements: {"base", "experts", "objectives", "promotion"},
    }
    problems = [problem for check, needs in checks.items() if not needs & bad for problem in check(study)]
    return problems if problems or bad else _check_names(study)


def _check_experts(study: Study) -> list[str]:
    if "base" in study.experts:
        return ["experts: 'base' is the base model's own name; give this expert another"]
    return []


def _check_combinations(study: Study) -> list[str]:
    if study.combinations == "all":
        return []
    problems = []
    for one in study.combinations:
        unknown = sorted(set(one) - set(study.experts))
        if unknown:
            problems.append(f"combinations: {', '.join(unknown)}: not among the experts ({', '.join(study.experts)})")
        if len(set(one)) < len(one):
            problems.append(f"combinations: [{', '.join(one)}] names an expert twice")
    chosen = [tuple(sorted(one)) for one in study.combinations]
    twice = sorted({one for one in chosen if chosen.count(one) > 1})
    return problems + [f"combinations: [{', '.join(one)}] stands twice" for one in twice]


def _check_calibration(study: Study) -> list[str]:
    if study.needs_calibration and study.calibration is None:
        method = "AIM" if study.needs_aim else "ACM"
        return [f"calibration: missing, but `informed` asks for {method}; name the texts to calibrate on"]
    return []


def _check_tasks(study: Study) -> list[str]:
    return [
        f"benchmarks: {name}: {problem}"
        for name, benchmark in study.benchmarks.items()
        for problem in check_benchmark(benchmark)
    ]


def _check_objectives(study: Study) -> list[str]:
    valid = [*study.benchmarks, *(f"{name}.{RESPONSE_TOKENS}" for name in study.benchmarks)]
    problems = [
        f"objectives: {objective}: not something a benchmark measures{suggest(objective, valid)}"
        for objective in study.objectives
        if objective not in valid
    ]
    silent = {f"{name}.{RESPONSE_TOKENS}" for name, one in study.benchmarks.items() if not generates(one.task)}
    problems += [f"objectives: {one}: this benchmark generates no text" for one in study.objectives if one in silent]
    return problems


def _check_length_reference(study: Study) -> list[str]:
    name = study.length_reference
    if name is None:
        return []
    if name not in study.sources:
        return [f"length_reference: {name} is not a model of the study{suggest(name, study.sources)}"]
    if not any(objective.endswith(f".{RESPONSE_TOKENS}") for objective in study.objectives):
        return [f"length_reference: no objective is a response length; add one, such as BENCHMARK.{RESPONSE_TOKENS}"]
    return []


def _check_requirements(study: Study) -> list[str]:
    required = study.promotion.require if study.promotion else []
    return [f"promotion: require: {problem}" for text in required for problem in _check_requirement(text, study)]


def _check_requirement(text: str, study: Study) -> list[str]:
    match = REQUIREMENT.match(text)
    if not match:
        return [
            f"{text!r}: write it like 'math >= base + 5' (objective, >= or <=, base, an expert or points, +/- points)"
        ]
    problems = []
    if match["objective"] not in study.objectives:
        problems.append(f"{text!r}: {match['objective']} is not an objective; valid: {', '.join(study.objectives)}")
    reference = match["reference"]
    if reference not in study.sources and not is_number(reference):
        problems.append(f"{text!r}: {reference} is not a model of the study; valid: {', '.join(study.sources)}")
    return problems


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_names(study: Study) -> list[str]:
    """Two names, or two recipes, that come out the same."""
    from evaluation.candidates import expand

    try:
        candidates = expand(study)
    except InputError as error:
        return [f"methods: {problem}" for problem in error.problems]
    sources = {source: source for source in study.sources.values()}
    first: dict[str, str] = {}
    for one in candidates:
        measured = dict.fromkeys(one.recipe.measured, "consensus")
        digest = one.recipe.digest(sources, "calibration" if one.recipe.aim else None, measured)
        if digest in first:
            again = "comes out twice" if first[digest] == one.name else f"is the same merge as {first[digest]!r}"
            return [f"methods: {one.name!r} {again}; remove one of the entries that make it"]
        first[digest] = one.name
    return []
