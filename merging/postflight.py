"""Is a model folder whole? Its weights finite, its files there, and does it load and generate?"""

from __future__ import annotations

from pathlib import Path

import torch

from merging.architecture import model_class
from merging.checkpoint import Checkpoint
from merging.errors import InputError
from merging.mapped_model import MappedModel

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
SHOWN = 5  # lines about tensors
PIECE = 1 << 18  # elements that are looked at together


def postflight(folder: str | Path) -> None:
    """Refuse a folder that is not a whole, finite model that generates. Raises InputError with every problem found."""
    folder = Path(folder)
    problems = []
    if not (folder / "config.json").exists():
        problems.append(f"{folder}: config.json is missing")
    try:
        checkpoint = Checkpoint(folder)
        overflowed = [name for name in checkpoint.entries if not is_finite(checkpoint.read(name))]
        problems += [
            f"{folder}: tensor {name} holds NaN or Inf: the merge overflowed; widen out_dtype or lower the weights"
            for name in overflowed[:SHOWN]
        ]
        if overflowed[SHOWN:]:
            problems.append(f"{folder}: and {len(overflowed) - SHOWN} more tensors that hold NaN or Inf")
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    check_generates(folder)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite. Their sum settles it in one cheap pass, unless it overflows."""
    if not tensor.is_floating_point():
        return True
    widened = torch.empty(PIECE, dtype=torch.float32)  # one, for the allocator does not give back what many leave
    for piece in tensor.reshape(-1).split(PIECE):
        wide = widened[: len(piece)].copy_(piece) if piece.itemsize < 4 else piece
        if not bool(wide.sum().isfinite()) and not bool(piece.isfinite().all()):
            return False
    return True


def check_generates(folder: Path) -> None:
    """Load the model and its tokenizer in transformers and generate a few tokens greedily.

    The weights stay in the pages of their files, so memory does not follow the model's size.
    """
    model, missing, unexpected = load(folder)
    found = {"missing_keys": missing, "unexpected_keys": unexpected}
    wrong = {kind: sorted(names)[:3] for kind, names in found.items() if names}
    if wrong:
        raise InputError(f"{folder}: weights and architecture do not agree: {wrong}")
    try:
        ids = prompt(folder, model.config.get_text_config().vocab_size)
        with torch.no_grad():
            logits = model(ids).logits
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    except Exception as error:
        raise InputError(f"{folder}: loads but does not generate: {error}") from error
    if not bool(logits.isfinite().all()) or made.shape[1] <= ids.shape[1]:
        raise InputError(f"{folder}: loads but does not generate: its logits are not finite")


def load(folder: Path) -> tuple[torch.nn.Module, set[str], set[str]]:
    """The model, ready to run, and the names of parameters and of tensors that have no counterpart."""
    try:
        mapped = MappedModel(folder)
        if not mapped.missing:
            mapped.load_as_used()
        return mapped.model, mapped.missing, mapped.unexpected
    except InputError:
        raise
    except Exception:  # an architecture that cannot be built so; what is wrong with a folder is told below
        return load_whole(folder)


def load_whole(folder: Path) -> tuple[torch.nn.Module, set[str], set[str]]:
    """As `load`, with the weights copied into memory."""
    try:
        model, info = model_class(folder).from_pretrained(folder, dtype="auto", output_loading_info=True)
    except Exception as error:
        raise InputError(f"{folder}: does not load in transformers: {error}") from error
    return model, info["missing_keys"], info["unexpected_keys"]


def prompt(folder: Path, vocab_size: int) -> torch.Tensor:
    """A short prompt of token ids (1, n), from the model's tokenizer where it has one."""
    if not any((folder / name).exists() for name in TOKENIZERS):
        return torch.arange(min(4, vocab_size))[None]
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)("1 + 1 =", return_tensors="pt").input_ids
    return ids if ids.numel() else torch.zeros((1, 1), dtype=torch.int64)
