"""`mergeflow consensus`: the statistics that ACM needs, of a base and one other model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from operators.device import device as best_device
from operators.progress import bar

PUBLISHED = 0.7  # the t whose lambdas are shown; the file serves any


def consensus(
    base: Annotated[Path, typer.Argument(help="the folder of the base model, whose tokenizer is used for both")],
    model: Annotated[Path, typer.Argument(help="the folder of an expert, or of a plain merge")],
    out: Annotated[Path, typer.Argument(help="the safetensors file to make")],
    texts: Annotated[Path, typer.Option(help='JSONL with a "text" field per line, each a sample of its own')],
    samples: Annotated[int | None, typer.Option(min=1, help="at most this many; all by default")] = None,
    longest: Annotated[int | None, typer.Option(min=1, help="tokens a text is cut to; none is by default")] = None,
    dtype: Annotated[Literal["bfloat16", "float32"], typer.Option(help="what both models run in")] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda", "auto"], typer.Option(help="auto: a GPU where there is one")] = "auto",
) -> None:
    """Measure how much two models' activations have in common, layer by layer, for ACM (arXiv 2505.14009).

    A recipe names the file: `acm: {t: 0.7, statistics: FILE}`, with task arithmetic of several experts
    `statistics: {EXPERT: FILE}`. Any t can be used later.
    """
    import torch

    from merging.acm import lambdas, length_statistics, length_warnings
    from merging.calibration import read_texts
    from merging.consensus import measure, text_samples
    from merging.layers import in_order

    ids = text_samples(read_texts(texts), base, samples, longest)
    with bar() as progress:
        found = measure(
            base,
            model,
            ids,
            out,
            dtype=getattr(torch, dtype),
            device=best_device() if device == "auto" else device,
            progress=progress,
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
