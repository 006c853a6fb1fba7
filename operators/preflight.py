"""Everything that can be known about a study before weights move: its models exist, are safe and fit together."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.candidates import expand
from evaluation.study import Study
from merging.errors import InputError
from operators.hooks.sources import ResolvedModel, Sources


def resolve_models(study: Study, sources: Sources) -> dict[str, dict[str, Any]]:
    """Pin every model of the study: by its name, what fetching it needs, plus its `reference` for recipes.

    Raises InputError with every problem: of names and revisions first, then of configs, shapes and tensors.
    """
    resolved = _resolve_all(study, sources)
    references = {name: _reference(model) for name, model in resolved.items()}
    with tempfile.TemporaryDirectory(prefix="mergeflow-preflight-") as folder:
        previews = {references[name]: sources.preview(model, Path(folder) / name) for name, model in resolved.items()}
        problems = _preflight_all(study, references, previews)
    if problems:
        raise InputError(problems)
    return {name: {**model.model_dump(mode="json"), "reference": references[name]} for name, model in resolved.items()}


def _resolve_all(study: Study, sources: Sources) -> dict[str, ResolvedModel]:
    resolved, problems = {}, []
    for name, source in study.sources.items():
        try:
            resolved[name] = sources.resolve(source, study.folder)
        except InputError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if study.needs_calibration and study.calibration.texts:
        texts = study.folder / Path(study.calibration.texts).expanduser()
        problems += _text_problems(texts)
    if problems:
        raise InputError(problems)
    return resolved


def _text_problems(path: Path) -> list[str]:
    from merging.calibration import read_texts

    if not path.is_file():
        return [f"calibration: texts: there is no file {path}"]
    try:
        read_texts(path)
    except InputError as error:
        return [f"calibration: texts: {problem}" for problem in error.problems]
    return []


def _reference(model: ResolvedModel) -> str:
    """The model's name in recipes, pinned where it can be."""
    return f"{model.place}@{model.commit}" if model.commit else model.source


def _preflight_all(study: Study, references: Mapping[str, str], previews: Mapping[str, Path]) -> list[str]:
    """The problems of all recipes, each once; recipes that differ in parameters alone are looked at once."""
    from merging.preflight import preflight

    problems: dict[str, None] = {}
    seen = set()
    for candidate in expand(study, references):
        if (kind := (candidate.method, candidate.combination)) in seen:
            continue
        seen.add(kind)
        try:
            # The statistics AIM and ACM need are made later; the weights are read the same without them.
            preflight(candidate.recipe.model_copy(update={"aim": None, "acm": None}), previews)
        except InputError as error:
            problems |= dict.fromkeys(error.problems)
    return list(problems)
