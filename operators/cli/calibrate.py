"""`mergeflow calibrate`: the activation statistics that AIM needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from operators.device import device
from operators.progress import bar


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

    chosen = token_blocks(read_texts(texts), model, samples, block)
    with bar() as progress:
        run(model, chosen.blocks, out, device=device(), progress=progress, metadata=chosen.about)
    print(f"{out}: {len(chosen.blocks)} blocks of {block} tokens")
