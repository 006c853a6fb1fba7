"""Whether merges fit on the disks they are written to."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from merging.digest import is_model_file
from merging.errors import InputError
from merging.output import partial_of
from merging.preflight import Plan
from merging.recipe import Recipe
from merging.units import shown

BESIDE = 1 << 20  # bytes for headers, an index and the card


def refuse_full_disk(outs: Sequence[Path], recipes: Sequence[Recipe], plans: Sequence[Plan]) -> None:
    """Raises InputError, a line per disk, if the outputs do not fit where they go.

    What an interrupted merge left in an output's `.partial` is taken over or removed, and counts as room.
    """
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for out, recipe, plan in zip(outs, recipes, plans, strict=True):
        place = next(parent for parent in out.absolute().parents if parent.exists())
        device = place.stat().st_dev
        places.setdefault(device, place)
        size = plan.bytes_written + surroundings_size(plan.models[recipe.frame].checkpoint.folder) + BESIDE
        needed[device] = needed.get(device, 0) + size - taken(partial_of(out))
    problems = []
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free
        if size > free:
            merges = "the merge takes" if len(outs) == 1 else f"{len(outs)} merges take"
            problems.append(
                f"{places[device]}: {shown(free)} are free, {merges} {shown(size)}; make room or go elsewhere"
            )
    if problems:
        raise InputError(problems)


def surroundings_size(folder: Path) -> int:
    """Bytes of the files beside the weights that a merge copies from the model that gives it its form."""
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".safetensors" and is_model_file(path.relative_to(folder).as_posix())
    )


def taken(folder: Path) -> int:
    """Bytes of disk that a folder's files take; a file may be longer than what has been written of it."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
