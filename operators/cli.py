"""The `mergeflow` command: what a person does without Airflow. Imports nothing heavy until a subcommand needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merging.errors import InputError, MergeflowError, TransientError
from operators.device import device

if TYPE_CHECKING:
    from evaluation.study import Study
    from merging.recipe import Recipe
    from operators.hooks.sources import Sources

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """Run a subcommand. A user's mistake is one line each on stderr and exit status 2; a failing service is 1."""
    try:
        app()
    except InputError as error:
        _stop(error.problems, 2)
    except TransientError as error:
        _stop([f"{error} (try again)"], 1)
    except (MergeflowError, OSError) as error:
        _stop([str(error)], 1)


def _stop(lines: list[str], status: int) -> None:
    for line in lines:
        print(f"mergeflow: {line}", file=sys.stderr)
    sys.exit(status)


@app.callback()
def _about() -> None:
    """Merge fine-tuned language models, measure the results, promote the best."""


@app.command()
def check(file: Annotated[Path, typer.Argument(help="a study or a recipe (YAML)")]) -> None:
    """Check a study or a recipe: keys, ranges, and that its models exist and fit together. Moves no weights."""
    import yaml

    text = _read(file)
    try:
        is_recipe = "merge_method" in (yaml.safe_load(text) or {})
    except (yaml.YAMLError, TypeError):
        is_recipe = False
    if is_recipe:
        _check_recipe(file)
    else:
        _check_study(file)


def _check_study(file: Path) -> None:
    from evaluation.candidates import expand
    from evaluation.study import Study
    from operators.preflight import resolve_models

    study = Study.load(file)
    resolved = resolve_models(study, _sources(study))
    print(f"study {study.name}: no mistakes found")
    for name, model in resolved.items():
        size = sum(one["size"] for one in model["files"].values())
        print(f"  {name}: {model['reference']} ({size / 1e6:.1f} MB, sha256 {model['digest'][:12]})")
    print(f"  {len(expand(study))} candidates, {len(study.benchmarks)} benchmarks")


def _check_recipe(file: Path) -> None:
    from merging.preflight import preflight
    from merging.recipe import Recipe

    recipe = Recipe.load(file)
    plan = preflight(recipe, {name: Path(name) for name in recipe.inputs}, statistics=_statistics(recipe))
    print(f"recipe {file.name}: no mistakes found")
    print(f"  {plan.tensors} tensors; reads {plan.bytes_read / 1e6:.1f} MB, writes {plan.bytes_written / 1e6:.1f} MB")
    print(f"  peak memory about {plan.peak_memory / 1e6:.0f} MB")
    for note in plan.notes:
        print(f"  note: {note}")


@app.command()
def plan(file: Annotated[Path, typer.Argument(help="a study (YAML)")]) -> None:
    """List the candidates a study expands to."""
    from rich.console import Console
    from rich.table import Table

    from evaluation.candidates import expand
    from evaluation.study import Study

    study = Study.load(file)
    table = Table("candidate", "method", "informed", "experts")
    candidates = expand(study)
    for one in candidates:
        table.add_row(one.name, one.method, one.informed, "+".join(one.combination))
    Console().print(table)
    models = len(candidates) + len(study.sources)
    print(f"study {study.name}: {len(candidates)} candidates; {models} models on {len(study.benchmarks)} benchmarks")


@app.command()
def methods() -> None:
    """List the merge methods with their parameters."""
    from rich.console import Console
    from rich.table import Table

    from merging.methods import METHODS

    table = Table()
    for column in ("method", "parameters", "what it computes", "source"):
        table.add_column(column, overflow="fold")
    for method in METHODS.values():
        shown = "\n".join(f"{one.name} = {one.default}" for one in method.parameters.values())
        table.add_row(method.name, shown, method.summary, method.paper)
    Console().print(table)


@app.command()
def merge(
    recipe: Annotated[Path, typer.Argument(help="a recipe (mergekit's YAML, with `aim:` beside it)")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
) -> None:
    """Merge local checkpoints by a recipe; model paths count from the current folder.

    With AIM, the recipe names the statistics that `calibrate` made: `aim: {omega: 0.4, statistics: FILE}`.
    """
    from merging.engine import merge as run
    from merging.recipe import Recipe

    loaded = Recipe.load(recipe)
    models = {name: Path(name) for name in loaded.inputs}
    with _progress() as progress:
        done = run(loaded, out, models=models, statistics=_statistics(loaded), progress=progress)
    print(f"{out}: {done['tensors']} tensors, {done['bytes_written'] / 1e6:.1f} MB in {done['seconds']:.1f} s")


@app.command()
def calibrate(
    model: Annotated[Path, typer.Argument(help="a local model folder")],
    out: Annotated[Path, typer.Argument(help="the safetensors file to make")],
    texts: Annotated[Path, typer.Option(help='JSONL with a "text" field per line')],
    samples: Annotated[int, typer.Option(min=1)] = 256,
    block: Annotated[int, typer.Option(min=2, help="tokens per block")] = 512,
) -> None:
    """Collect the activation statistics of a model, for AIM."""
    from merging.calibration import calibrate as run
    from merging.calibration import read_texts, token_blocks

    blocks = token_blocks(read_texts(texts), model, samples, block)
    with _progress() as progress:
        run(model, blocks, out, device=device(), progress=progress)
    print(f"{out}: {len(blocks)} blocks of {block} tokens")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="a local model folder")],
    task: Annotated[list[str], typer.Option(help="a task of lm-eval or of evaluation/tasks; may be given again")],
    limit: Annotated[int | None, typer.Option(min=1, help="at most this many questions")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    samples: Annotated[Path | None, typer.Option(help="folder for the answers to every question (JSONL)")] = None,
) -> None:
    """Benchmark a model with lm-eval."""
    from evaluation.benchmark import Benchmark, check_benchmark

    benchmarks = [Benchmark(task=name, limit=limit, batch_size=batch_size) for name in task]
    problems = [problem for one in benchmarks for problem in check_benchmark(one)]
    if problems:
        raise InputError(problems)
    if samples:
        samples.mkdir(parents=True, exist_ok=True)
    from evaluation.lm_eval_runner import run_benchmarks

    with _progress() as progress:
        scores = run_benchmarks(model, benchmarks, device=device(), progress=progress)
    for score in scores:
        error = f" +- {100 * score.stderr:.1f}" if score.stderr is not None else ""
        length = f", {score.response_tokens:.1f} tokens per answer" if score.response_tokens is not None else ""
        print(f"{score.task}: {100 * score.value:.1f} %{error} ({score.metric}, {score.samples} questions{length})")
        if samples:
            score.write_samples(samples / f"{score.task}.jsonl")


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a text file") from None


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


def _statistics(recipe: Recipe) -> Path | None:
    return Path(recipe.aim.statistics) if recipe.aim and recipe.aim.statistics else None


def _progress() -> Any:
    from operators.progress import bar

    return bar()


if __name__ == "__main__":
    main()
