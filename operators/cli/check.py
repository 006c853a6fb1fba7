"""`mergeflow check`: is a study or a recipe right, before anything is moved?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from operators.cli.calibrate import calibrates, calibration_set, statistics_of
from operators.cli.consensus import measures, samples_of

if TYPE_CHECKING:
    from evaluation.study import Study
    from operators.hooks.sources import Sources


def check(file: Annotated[Path, typer.Argument(help="a study or a recipe (YAML)")]) -> None:
    """Check a study or a recipe: keys, ranges, and that its models exist and fit together. Moves no weights."""
    from merging.yaml_file import read_yaml

    data = read_yaml(file)
    is_recipe = isinstance(data, dict) and "merge_method" in data
    if is_recipe:
        _check_recipe(file)
    else:
        _check_study(file)


def _check_study(file: Path) -> None:
    from evaluation.candidates import expand
    from evaluation.study import Study
    from merging.units import shown
    from operators.preflight import resolve_models

    study = Study.load(file)
    resolved = resolve_models(study, _sources(study))
    print(f"study {study.name}: no mistakes found")
    for name, model in resolved.items():
        size = sum(one["size"] for one in model["files"].values())
        print(f"  {name}: {model['reference']} ({shown(size)}, sha256 {model['digest'][:12]})")
    print(f"  {len(expand(study))} candidates, {len(study.benchmarks)} benchmarks")


def _check_recipe(file: Path) -> None:
    from merging.preflight import preflight
    from merging.recipe import Recipe
    from merging.units import shown

    recipe = Recipe.load(file)
    models, statistics = {name: Path(name) for name in recipe.inputs}, statistics_of(recipe)
    made = {"aim": None} if calibrates(recipe) else {}
    made |= {"acm": None} if measures(recipe) else {}
    plan = preflight(recipe.model_copy(update=made), models, statistics=statistics)
    if made and not recipe.calibration.dataset:
        read = calibration_set if calibrates(recipe) else samples_of
        read(recipe.calibration, models[recipe.frame])
    print(f"recipe {file.name}: no mistakes found")
    print(f"  {plan.tensors} tensors; reads {shown(plan.bytes_read)}, writes {shown(plan.bytes_written)}")
    print(f"  peak memory about {shown(plan.peak_memory)}")
    for note in plan.notes:
        print(f"  note: {note}")


def _sources(study: Study) -> Sources:
    """The hub and S3 as this shell's environment names them (HF_ENDPOINT, HF_TOKEN, AWS_*)."""
    from operators.hooks.hub import Hub
    from operators.hooks.object_store import cache_folder
    from operators.hooks.sources import Sources

    s3 = None
    if any(source.startswith("s3://") for source in study.sources.values()):
        import boto3

        s3 = boto3.Session().client("s3")
    return Sources(cache_folder() / "sources", Hub(), s3)
