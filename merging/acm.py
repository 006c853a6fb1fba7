"""ACM: activation-guided consensus merging (arXiv 2505.14009): a factor by layer for a model's change from its base.

What says how much of the change is kept is how much the two models' activations have in common on each of some texts.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merging.errors import InputError
from merging.layers import layer_of
from merging.tensor_file import load_tensors

KIND = "mutual information"


@dataclass(frozen=True)
class Consensus:
    """What two models' activations have in common: nats by module, float64 (samples,), and each sample's tokens.

    `base` and `against` are the two models' digests.
    """

    information: Mapping[str, Tensor]
    lengths: Sequence[int]
    base: str
    against: str

    @property
    def about(self) -> dict[str, str]:
        """The metadata of the file that keeps it, whose tensors are those of `information`."""
        lengths = json.dumps(list(self.lengths))
        return {"kind": KIND, "base": self.base, "against": self.against, "lengths": lengths}

    @classmethod
    def load(cls, path: str | Path) -> Consensus:
        """What a file keeps. Raises InputError naming the file, and the module that is wrong."""
        information, metadata = load_tensors(Path(path))
        if metadata.get("kind") != KIND:
            raise InputError(f"{path}: not the statistics ACM needs; make them with `mergeflow consensus`")
        try:
            lengths = [int(length) for length in json.loads(metadata["lengths"])]
            found = cls(information, lengths, metadata["base"], metadata["against"])
        except (KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path}: its metadata is damaged ({error!r}); make it again") from None
        problems = [
            f"{path}: module {module} has no mutual information >= 0 for each of {len(lengths)} samples; make it again"
            for module, values in information.items()
            if values.shape != (len(lengths),) or not bool((values.isfinite() & (values >= 0)).all())
        ]
        if problems or not lengths:
            raise InputError(problems or f"{path}: holds no sample")
        return found


def lambdas(information: Mapping[str, Tensor], t: float) -> dict[str, float]:
    """`1 - mean over s of sigmoid(t (I_s - max I))` by module, from the information (samples,) of each, nats.

    In [0.5, 1) for t > 0, in (0, 0.5] for t < 0.
    """
    return {
        module: float(1 - torch.sigmoid(t * (values.double() - values.double().max())).mean())
        for module, values in information.items()
    }


def controlled(found: Mapping[str, float], control: str | None, seed: int) -> dict[str, float]:
    """The lambdas a control puts in place of those found: their mean everywhere (`uniform`), or the same ones in
    another order over the modules (`shuffled`), which the seed alone decides. No control: those found."""
    if control == "uniform":
        mean = statistics.fmean(found.values())
        return dict.fromkeys(found, mean)
    if control == "shuffled":
        order = sorted(found, key=lambda module: hashlib.sha256(f"{seed}/{module}".encode()).digest())
        return {module: found[other] for module, other in zip(sorted(found), order, strict=True)}
    return dict(found)


def module_of(tensor: str, measured: Iterable[str]) -> str | None:
    """The module whose lambda a tensor takes; None where it was not measured.

    All weights, norms and biases of a decoder layer take that of the layer's measured module. What lies outside the
    layers takes its own; a tied embedding is the embedding's, not the head's.
    """
    layer = layer_of(tensor)
    if layer is None:
        own = tensor.rpartition(".")[0]
        return own if own in measured else None
    return next((module for module in measured if layer_of(module) == layer), None)


def length_statistics(lengths: Sequence[int]) -> dict[str, float]:
    """What the lambdas follow, in tokens: the samples' number, and the least, mean, greatest and spread of lengths."""
    return {
        "samples": len(lengths),
        "shortest": min(lengths),
        "mean": statistics.fmean(lengths),
        "longest": max(lengths),
        "standard deviation": statistics.pstdev(lengths),
    }


def direction_warnings(t: float) -> list[str]:
    """A line where t turns the direction round."""
    if t > 0:
        return []
    return [
        f"acm: t {t:g} is below 0, which turns the direction round: lambda is at most 0.5, and smaller where the "
        "models' activations have less in common"
    ]


def length_warnings(lengths: Sequence[int]) -> list[str]:
    """A line where the samples' lengths do not differ, without which lambda says nothing."""
    if min(lengths) != max(lengths):
        return []
    return [
        f"acm: all {len(lengths)} samples have {lengths[0]} tokens; the mutual information then hardly varies and "
        "lambda collapses to about 0.5 everywhere: use texts of different lengths"
    ]
