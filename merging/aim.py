"""AIM: activation-informed merging (arXiv 2502.02421), a relaxation of any merged weight towards its base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from merging.errors import InputError
from merging.tensor_file import load_tensors
from merging.vocabulary import HEAD, is_embedding

if TYPE_CHECKING:
    from merging.preflight import Output
    from merging.recipe import Recipe


@dataclass(frozen=True)
class Statistics:
    """What AIM takes: `vectors` by module, fp32 (n,), their file, and the digest of the model it names, if any."""

    file: Path
    model: str | None
    vectors: Mapping[str, Tensor]


def importance(s: Tensor) -> Tensor:
    """`s / max(s)`, in [0, 1], of a module's mean absolute activations per channel (n,). Zeros where all are 0."""
    top = s.max()
    return s / top if top > 0 else s.new_zeros(s.shape)


def relax(base: Tensor, merged: Tensor, s: Tensor, omega: float) -> Tensor:
    """`b + (merged - b) * (1 - imp * (1 - omega))`, `imp` broadcast over the last (input) dimension.

    `base` and `merged` have one shape (..., n), `s` has (n,). omega 1 gives `merged` up to rounding; omega 0 keeps the
    base where a channel is most active.
    """
    return scaled(base, merged, factor(s.to(merged), omega))


def factor(s: Tensor, omega: float) -> Tensor:
    """`1 - imp * (1 - omega)`, (n,): what is left of the change of each channel."""
    return 1 - importance(s) * (1 - omega)


def factors(statistics: Mapping[str, Tensor], omega: float, outputs: Mapping[str, Output]) -> Callable:
    """A function that gives a tensor's factor by its name, None for what AIM leaves alone."""

    def of(name: str) -> Tensor | None:
        module = outputs[name].module
        return factor(statistics[module].double(), omega) if module else None

    return of


def scaled(base: Tensor, merged: Tensor, factor: Tensor) -> Tensor:
    """`b + (merged - b) * factor`, the factor broadcast over the last dimension."""
    return (merged - base).mul_(factor).add_(base)


def module_of(tensor: str, tied: bool) -> str | None:
    """The module whose statistics relax a tensor; None for what AIM leaves alone (embeddings and biases).

    A tied embedding is the head's weight too, and takes the head's statistics.
    """
    if is_embedding(tensor):
        return HEAD.removesuffix(".weight") if tied else None
    return tensor.removesuffix(".weight") if tensor.endswith(".weight") else None


def read_statistics(path: str | Path) -> Statistics:
    """Activation statistics as `calibrate` writes them. Raises InputError naming the module."""
    vectors, about = load_tensors(Path(path))
    problems = [
        f"{path}: the statistics of {module} are not one vector of finite numbers >= 0; calibrate again"
        for module, s in vectors.items()
        if s.dim() != 1 or not s.is_floating_point() or not bool((s.isfinite() & (s >= 0)).all())
    ]
    if problems:
        raise InputError(problems)
    return Statistics(Path(path), about.get("model"), vectors)


def digest_problems(recipe: Recipe, found: Statistics | None, identities: Mapping[str, str]) -> list[str]:
    """A line where the statistics are of another model than the base; `identities` are the inputs' digests."""
    if found is None or found.model in (None, identities[recipe.base_model]):
        return []
    return [f"{found.file}: these statistics are of another model than the base {recipe.base_model}; calibrate it"]
