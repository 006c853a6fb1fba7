"""`mergeflow calibrate`: the activation statistics that AIM needs, made by hand or for a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from merging.calibration_choice import CalibrationChoice
from merging.digest import calibration_digest, json_digest, model_digest, model_files
from merging.errors import InputError
from merging.validation import explain
from operators.device import device as best_device
from operators.progress import bar

if TYPE_CHECKING:
    from merging.calibration import CalibrationSet
    from merging.recipe import Recipe


def calibrate(
    model: Annotated[Path, typer.Argument(help="a local model folder")],
    out: Annotated[Path, typer.Argument(help="the safetensors file to make")],
    texts: Annotated[Path | None, typer.Option(help='JSONL with a "text" field per line')] = None,
    dataset: Annotated[str | None, typer.Option(help="a data set: a hub id, org/name@revision, or a folder")] = None,
    token_blocks: Annotated[
        Path | None, typer.Option(help="safetensors with int64 `input_ids` of shape (blocks, length)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of the data set; validation by default")] = None,
    field: Annotated[str | None, typer.Option(help="of the data set's rows; text by default")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="how many texts; 256 by default")] = None,
    block: Annotated[int | None, typer.Option(min=2, help="tokens per block; 512 by default")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="what the model runs in")] = "float32",
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="auto: a GPU where there is one")] = "auto",
    whole: Annotated[bool, typer.Option(help="the whole model in memory, not a decoder layer at a time")] = False,
) -> None:
    """Collect the activation statistics of a model, for AIM; give one of --texts, --dataset and --token-blocks.

    A run that was interrupted goes on from the last finished layer when it is started again.
    """
    given = {"texts": texts, "dataset": dataset, "token_blocks": token_blocks, "split": split, "field": field}
    given |= {"samples": samples, "block": block}
    run(choice_of(given), model, out, dtype=dtype, device=device, streamed=not whole)


def choice_of(given: dict[str, Any]) -> CalibrationChoice:
    """What the options choose. Raises InputError for none, or several, of the three sources."""
    from pydantic import ValidationError

    named = {key: str(value) if isinstance(value, Path) else value for key, value in given.items() if value is not None}
    try:
        return CalibrationChoice.model_validate(named)
    except ValidationError as error:
        raise InputError(explain(error, CalibrationChoice, "calibrate")) from None


def run(
    choice: CalibrationChoice,
    model: Path,
    out: Path,
    *,
    digest: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    streamed: bool = True,
) -> None:
    """Calibrate a model whose digest may be known, and tell of it."""
    import torch

    from merging.calibration import calibrate as collect

    chosen, source = calibration_set(choice, model)
    digest = digest or model_digest(model_files(model))
    calibration = calibration_digest(digest, source, choice.samples, choice.block)
    about = {"model": digest, "calibration": calibration if dtype == "float32" else json_digest([calibration, dtype])}
    with bar() as progress:
        collect(
            model,
            chosen.blocks,
            out,
            dtype=getattr(torch, dtype),
            device=best_device() if device == "auto" else device,
            streamed=streamed,
            progress=progress,
            metadata=about | chosen.about,
        )
    print(f"{out}: {len(chosen.blocks)} blocks of {chosen.blocks.shape[1]} tokens")
    if chosen.note:
        print(f"  note: {chosen.note}")


def calibration_set(choice: CalibrationChoice, model: Path) -> tuple[CalibrationSet, str]:
    """The calibration set of a model, and the digest of what it is made from. Raises InputError naming the source."""
    from merging.calibration import read_token_blocks, token_blocks
    from merging.calibration.texts import texts_digest

    if choice.token_blocks:
        return read_token_blocks(choice.token_blocks, model), texts_digest(choice.token_blocks)
    texts, source = texts_of(choice)
    return token_blocks(texts, model, choice.samples, choice.block), source


def texts_of(choice: CalibrationChoice) -> tuple[Iterable[str], str]:
    """The texts of a choice that is not of token blocks, and the digest of what they come from."""
    from merging.calibration import read_texts
    from merging.calibration.texts import texts_digest

    if choice.texts:
        return read_texts(choice.texts), texts_digest(choice.texts)
    from evaluation.texts import dataset_texts

    name, revision = pinned(choice.dataset)
    about = {"dataset": name, "revision": revision, "split": choice.split, "field": choice.field}
    return dataset_texts(name, revision, choice.split, choice.field), json_digest(about)


def pinned(dataset: str) -> tuple[str, str | None]:
    """A data set's name and the commit its revision has now; a folder has none."""
    if Path(dataset).is_dir():
        return dataset, None
    from operators.hooks.hub import Hub

    name, _, revision = dataset.partition("@")
    return name, Hub().dataset_commit(name, revision or None)


def calibrates(recipe: Recipe) -> bool:
    """Whether AIM's statistics are to be made by the recipe's `calibration`."""
    return bool(recipe.aim and not recipe.aim.statistics and recipe.calibration)


def statistics_for(recipe: Recipe, models: dict[str, Path]) -> tuple[Path | None, dict[str, str]]:
    """The file of statistics that AIM needs, made here if the recipe says how; and digests of models found for it.

    What is made is kept in the cache under what it is of, so that the next merge finds it.
    """
    if not calibrates(recipe):
        return statistics_of(recipe), {}
    from merging.calibration.statistics import statistics_key
    from merging.preflight import preflight
    from operators.hooks.object_store import cache_folder

    preflight(recipe.model_copy(update={"aim": None}), models)
    base = models[recipe.frame]
    digest = model_digest(model_files(base))
    chosen, _ = calibration_set(recipe.calibration, base)
    kept = cache_folder() / "statistics" / f"{statistics_key(digest, chosen.blocks)}.safetensors"
    if not kept.exists():
        run(recipe.calibration, base, kept, digest=digest)
    return kept, {recipe.frame: digest}


def statistics_of(recipe: Recipe) -> Path | None:
    """The file of activation statistics that a recipe names."""
    return Path(recipe.aim.statistics) if recipe.aim and recipe.aim.statistics else None
