"""`mergeflow merge` and `mergeflow methods`: one recipe into one folder, and what a recipe can ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from operators.cli.calibrate import statistics_for
from operators.cli.consensus import consensus_for
from operators.device import device as best_device
from operators.progress import bar


def merge(
    recipe: Annotated[Path, typer.Argument(help="a recipe (mergekit's YAML, with `aim:` beside it)")],
    out: Annotated[Path, typer.Argument(help="the folder to make")],
    shard_size: Annotated[
        str | None, typer.Option(help="cut the weights into files of at most this size: bytes, or 5GB, 500MB, 2GiB")
    ] = None,
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="auto: a GPU where there is one")] = "cpu",
) -> None:
    """Merge local checkpoints by a recipe; model paths count from the current folder.

    With AIM, the recipe names what `calibrate` made, `aim: {omega: 0.4, statistics: FILE}`, or what to calibrate the
    base on, `calibration: {texts: FILE}` beside `aim: {omega: 0.4}`. ACM likewise, with what `consensus` made.
    """
    from merging.engine import merge as run
    from merging.recipe import Recipe
    from merging.units import read_size, shown

    size = read_size(shard_size, "--shard-size") if shard_size else None
    loaded = Recipe.load(recipe)
    models = {name: Path(name) for name in loaded.inputs}
    statistics, digests = statistics_for(loaded, models)
    consensus, more_digests = consensus_for(loaded, models, statistics)
    with bar() as progress:
        done = run(
            loaded,
            out,
            models=models,
            statistics=statistics,
            consensus=consensus,
            digests=digests | more_digests,
            progress=progress,
            shard_size=size,
            device=best_device() if device == "auto" else device,
        )
    print(f"{out}: {done['tensors']} tensors, {shown(done['bytes_written'])} in {done['seconds']:.1f} s")
    for note in done["notes"]:
        print(f"  note: {note}")


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
