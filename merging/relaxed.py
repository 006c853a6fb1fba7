"""AIM for a checkpoint that is merged already, made here or elsewhere: a recipe that keeps it and relaxes it."""

from __future__ import annotations

from pathlib import Path

from merging.checkpoint import Checkpoint
from merging.errors import InputError
from merging.recipe import Recipe


def recipe_for(merged: str, base: str, omega: float) -> Recipe:
    """The recipe that relaxes the checkpoint in the folder `merged` towards `base`.

    Its tokens and dtype are kept; a token the base lacks is relaxed towards the mean of the base's rows. Raises
    InputError where the two are one, or the checkpoint cannot be read.
    """
    if Path(merged).resolve() == Path(base).resolve():
        raise InputError(f"{merged}: the merged model and its base are one folder; name the base it was merged from")
    return Recipe.parse(
        {
            "merge_method": "passthrough",
            "base_model": base,
            "models": [{"model": merged}],
            "tokenizer_source": merged,
            "out_dtype": stored_dtype(Path(merged)),
            "aim": {"omega": omega},
        }
    )


def stored_dtype(folder: Path) -> str | None:
    """The one dtype that a checkpoint's float tensors are stored in; None where they differ."""
    dtypes = {entry.dtype for entry in Checkpoint(folder).entries.values() if entry.dtype.is_floating_point}
    return str(dtypes.pop()).removeprefix("torch.") if len(dtypes) == 1 else None
