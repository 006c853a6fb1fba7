"""How much two models' activations have in common on some texts: the statistics ACM rests on (arXiv 2505.14009)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from merging.acm import Consensus
from merging.calibration.stream import NotStreamable, Step, stream, whole
from merging.errors import InputError
from merging.inputs import differences, open_model
from merging.layers import layer_of
from merging.mutual_information import NotANumber, mutual_information
from merging.vocabulary import HEADS

# the block of a decoder layer whose output stands for the layer, and the last linear of one that is no mixture
BLOCK = re.compile(r"\.\d+\.(mlp|block_sparse_moe|feed_forward)$")
LAST = ("down_proj", "dense_4h_to_h", "fc2", "c_proj")
OWN = re.compile(rf"{BLOCK.pattern.removesuffix('$')}\.({'|'.join(LAST)})$")


def text_samples(
    texts: Iterable[str], model_dir: str | Path, samples: int | None = None, longest: int | None = None
) -> list[Tensor]:
    """Each text as token ids of its own, int64 (length,), by a model's tokenizer with its special tokens.

    The first `samples` that hold a token (None: all), cut to `longest` tokens (None: uncut). InputError for none.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    found = []
    for text in texts:
        if len(found) == samples:
            break
        if ids := tokenizer.encode(text)[:longest]:
            found.append(torch.tensor(ids, dtype=torch.int64))
    if not found:
        raise InputError("consensus: the texts give no token")
    return found


def measure(
    base: str | Path,
    against: str | Path,
    samples: Sequence[Tensor],
    digests: tuple[str, str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
) -> Consensus:
    """The mutual information of the outputs of two models, module by module, on samples of token ids (length,).

    Of each decoder layer the output of its MLP (its last linear, or a mixture's whole block), of the modules outside
    the layers their own. Both models run in `dtype`, layer by layer and side by side; what they give is rounded to
    bfloat16. `digests` are of the two models, to tell later what was measured.

    Raises InputError where the two do not fit together, or an activation is NaN.
    """
    models = [open_model(str(folder), Path(folder)) for folder in (base, against)]
    if problems := differences(*models):
        raise InputError(problems)
    information: dict[str, Tensor] = {}
    for ours, theirs in side_by_side((base, against), samples, dtype, device):
        for (module, a), (_, b) in zip(ours.outputs, theirs.outputs, strict=True):
            values = information.setdefault(module, torch.full((len(samples),), torch.nan, dtype=torch.float64))
            values[ours.sample] = in_common(module, a, b, (base, against))
        if progress:
            done = ours.part * len(samples) + ours.sample + 1
            progress(done, ours.parts * len(samples), f"part {ours.part + 1} of {ours.parts}")
    refuse_unwatched(base, models[0].tensors, information)
    return Consensus(information, [len(ids) for ids in samples], *digests)


def side_by_side(folders, samples: Sequence[Tensor], dtype, device: str) -> Iterator[tuple[Step, Step]]:
    """Both models' steps, a decoder layer of each in memory at a time; whole where they cannot be run so."""
    settings = {"outputs": watch, "dtype": dtype, "device": device}
    try:
        yield from zip(*(stream(folder, samples, **settings) for folder in folders), strict=True)
    except NotStreamable:
        yield from zip(*(whole(folder, samples, **settings) for folder in folders), strict=True)


def watch(name: str, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What ACM looks at: of a module of this name, its whole output or nothing."""
    if layer_of(name) is None:
        wanted = isinstance(getattr(module, "weight", None), nn.Parameter)
    elif BLOCK.search(name):
        wanted = not any(hasattr(module, last) for last in LAST)
    else:
        wanted = bool(OWN.search(name))
    return (lambda output: output) if wanted else None


def in_common(module: str, a: Tensor, b: Tensor, folders) -> float:
    """The mutual information of two outputs of a module, nats; of a head, over the tokens that both have."""
    if f"{module}.weight" in HEADS:
        width = min(a.shape[-1], b.shape[-1])
        a, b = a[..., :width], b[..., :width]
    try:
        return mutual_information(a, b)
    except NotANumber:
        bad = folders[0] if bool(a.isnan().any()) else folders[1]
        raise InputError(f"{bad}: the output of {module} is NaN on the calibration texts; run it in float32") from None


def refuse_unwatched(folder, tensors: Iterable[str], information) -> None:
    """Raises InputError for a decoder layer with no output to stand for it."""
    wanted = {layer for tensor in tensors if (layer := layer_of(tensor)) is not None}
    lacking = wanted - {layer_of(module) for module in information}
    if lacking:
        raise InputError(f"{folder}: no MLP was found in decoder layer {min(lacking)}; ACM cannot measure this model")
