"""`mergeflow aim`: activation-informed merging for a checkpoint that is merged already."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from merging.calibration_choice import CalibrationChoice
from merging.errors import InputError
from operators.cli.calibrate import choice_of
from operators.cli.calibrate import run as calibrate
from operators.device import device as best_device
from operators.progress import bar


def aim(
    merged: Annotated[Path, typer.Argument(help="the folder of a merged model, made here or with mergekit")],
    out: Annotated[Path, typer.Argument(help="the folder to make; with several omegas, a folder in it for each")],
    base: Annotated[Path, typer.Option(help="the folder of the model the experts were tuned from")],
    omega: Annotated[
        list[float] | None, typer.Option(help="0.4 by default, 0.2 to 0.6 is advised; may be given again", min=0, max=1)
    ] = None,
    statistics: Annotated[Path | None, typer.Option(help="what `calibrate` made of the base")] = None,
    texts: Annotated[Path | None, typer.Option(help="calibrate the base on these, JSONL as `calibrate` takes")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="texts to calibrate on; 256 by default")] = None,
    block: Annotated[int | None, typer.Option(min=2, help="tokens per block of them; 512 by default")] = None,
    shard_size: Annotated[str | None, typer.Option(help="as for `merge`")] = None,
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="auto: a GPU where there is one")] = "cpu",
) -> None:
    """Relax a merged model towards its base where the base is most active (AIM, arXiv 2502.02421).

    Several omegas share one reading of the weights.
    """
    from merging.engine import merge_many
    from merging.relaxed import recipe_for
    from merging.units import read_size, shown

    if (statistics is None) == (texts is None):
        raise InputError("name either --statistics (what `mergeflow calibrate` made of the base) or --texts")
    size = read_size(shard_size, "--shard-size") if shard_size else None
    omegas = list(dict.fromkeys(omega or [0.4]))
    recipes = [recipe_for(str(merged), str(base), one) for one in omegas]
    outs = [out] if len(omegas) == 1 else [out / f"omega-{one:g}" for one in omegas]
    choice = choice_of({"texts": texts, "samples": samples, "block": block}) if texts else None
    with calibrated(statistics, choice, base) as file, bar() as progress:
        results = merge_many(
            recipes,
            outs,
            models={str(merged): merged, str(base): base},
            statistics=file,
            progress=progress,
            shard_size=size,
            device=best_device() if device == "auto" else device,
        )
    problems = [problem for found in results if isinstance(found, InputError) for problem in found.problems]
    if problems:
        raise InputError(problems)
    for folder, found in zip(outs, results, strict=True):
        print(f"{folder}: {found['tensors']} tensors, {shown(found['bytes_written'])} in {found['seconds']:.1f} s")
        for note in found["notes"]:
            print(f"  note: {note}")


@contextmanager
def calibrated(statistics: Path | None, choice: CalibrationChoice | None, base: Path) -> Iterator[Path]:
    """The file of the base's statistics: the one that is named, or one made of the texts for as long as it is used."""
    if statistics:
        yield statistics
        return
    with tempfile.TemporaryDirectory(prefix="mergeflow-aim-") as folder:
        calibrate(choice, base, Path(folder) / "statistics.safetensors")
        yield Path(folder) / "statistics.safetensors"
