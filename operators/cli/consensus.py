"""`mergeflow consensus`: the statistics that ACM needs, made by hand or for a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from merging.calibration_choice import CalibrationChoice
from operators.cli.calibrate import choice_of, texts_of
from operators.device import device as best_device
from operators.progress import bar

if TYPE_CHECKING:
    from torch import Tensor

    from merging.recipe import Recipe

PUBLISHED = 0.7  # the t whose lambdas are shown; the file serves any


def consensus(
    base: Annotated[Path, typer.Argument(help="the folder of the base model, whose tokenizer is used for both")],
    model: Annotated[Path, typer.Argument(help="the folder of an expert, or of a plain merge")],
    out: Annotated[Path, typer.Argument(help="the safetensors file to make")],
    texts: Annotated[Path | None, typer.Option(help='JSONL with a "text" field per line, each a sample')] = None,
    dataset: Annotated[str | None, typer.Option(help="a data set: a hub id, org/name@revision, or a folder")] = None,
    token_blocks: Annotated[
        Path | None, typer.Option(help="safetensors with int64 `input_ids` of shape (samples, length)")
    ] = None,
    split: Annotated[str | None, typer.Option(help="of the data set; validation by default")] = None,
    field: Annotated[str | None, typer.Option(help="of the data set's rows; text by default")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="how many texts; 256 by default")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="tokens a text is cut to; none is by default")] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="what both models run in")] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="auto: a GPU where there is one")] = "auto",
) -> None:
    """Measure how much two models' activations have in common, layer by layer, for ACM (arXiv 2505.14009).

    A recipe names the file: `acm: {t: 0.7, statistics: FILE}`, with task arithmetic of several experts
    `statistics: {EXPERT: FILE}`. Any t can be used later. Give one of --texts, --dataset and --token-blocks.
    """
    given = {"texts": texts, "dataset": dataset, "token_blocks": token_blocks, "split": split, "field": field}
    choice = choice_of(given | {"samples": samples, "longest": longest})
    run(samples_of(choice, base), base, model, out, dtype=dtype, device=device)


def samples_of(choice: CalibrationChoice, base: Path) -> list[Tensor]:
    """The samples of a choice as token ids by the base's tokenizer. Raises InputError naming the source."""
    from merging.calibration import read_token_blocks
    from merging.consensus import text_samples

    if choice.token_blocks:
        return [ids[: choice.longest] for ids in read_token_blocks(choice.token_blocks, base).blocks]
    return text_samples(texts_of(choice)[0], base, choice.samples, choice.longest)


def run(
    samples: list[Tensor],
    base: Path,
    model: Path,
    out: Path,
    *,
    digests: tuple[str, str] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
) -> None:
    """Measure two models whose digests may be known, and tell of it."""
    import torch

    from merging.acm import lambdas, length_statistics, length_warnings
    from merging.consensus import measure
    from merging.layers import in_order

    with bar() as progress:
        found = measure(
            base,
            model,
            samples,
            out,
            dtype=getattr(torch, dtype),
            device=best_device() if device == "auto" else device,
            progress=progress,
            digests=digests,
        )
    lengths = length_statistics(found.lengths)
    print(f"{out}: {len(found.information)} modules, {lengths['samples']} samples of {lengths['shortest']} to ", end="")
    print(f"{lengths['longest']} tokens (mean {lengths['mean']:.1f}, deviation {lengths['standard deviation']:.1f})")
    shown = lambdas(found.information, PUBLISHED)
    for module in in_order(shown):
        nats = found.information[module]
        told = f"{nats.mean():.3f} nats, at most {nats.max():.3f}"
        print(f"  {module}: {told}; lambda {shown[module]:.4f} at t {PUBLISHED}")
    for note in length_warnings(found.lengths):
        print(f"  note: {note}")


def measures(recipe: Recipe) -> bool:
    """Whether ACM's statistics are to be made by the recipe's `calibration`."""
    return bool(recipe.acm and not recipe.acm.statistics and recipe.calibration)


def consensus_for(
    recipe: Recipe, models: dict[str, Path], statistics: Path | None
) -> tuple[dict[str, Path] | None, dict[str, str]]:
    """The files that ACM needs, made here if the recipe says how; and the digests of the models found for it.

    Experts are measured as they are; for other methods than task arithmetic the merge is made without ACM first, and
    measured. `statistics` is what AIM takes. What is measured is kept in the cache, so that the next merge finds it.
    """
    if not measures(recipe):
        return None, {}
    from merging.consensus import consensus_key
    from merging.digest import file_sha256, model_digest, model_files
    from merging.preflight import preflight
    from operators.hooks.object_store import cache_folder

    plain = recipe.model_copy(update={"acm": None})
    preflight(plain, models, statistics=statistics)
    base = models[recipe.base_model]
    samples = samples_of(recipe.calibration, base)
    digests = {name: model_digest(model_files(folder)) for name, folder in models.items()}
    files = {}
    for one in recipe.measured:
        by_expert = recipe.acm_by_expert
        against = digests[one] if by_expert else plain.digest(digests, file_sha256(statistics) if plain.aim else None)
        pair = digests[recipe.base_model], against
        files[one] = cache_folder() / "consensus" / f"{consensus_key(pair, samples)}.safetensors"
        if not files[one].exists():
            files[one].parent.mkdir(parents=True, exist_ok=True)
            there = nullcontext(models[one]) if by_expert else merged(plain, models, statistics, digests)
            with there as model:
                run(samples, base, model, files[one], digests=pair)
    return files, digests


@contextmanager
def merged(recipe: Recipe, models: dict[str, Path], statistics: Path | None, digests: dict[str, str]) -> Iterator[Path]:
    """The folder of a merge, for as long as it is measured."""
    from merging.engine import merge
    from operators.hooks.object_store import cache_folder

    with tempfile.TemporaryDirectory(prefix="plain-", dir=cache_folder() / "consensus") as folder, bar() as progress:
        merge(recipe, Path(folder) / "merge", models=models, statistics=statistics, digests=digests, progress=progress)
        yield Path(folder) / "merge"
