"""Is a model folder whole? Its weights finite, its files there, and does it load and generate?"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import torch

from merging.checkpoint import Checkpoint
from merging.errors import InputError

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def postflight(folder: str | Path) -> None:
    """Refuse a folder that is not a whole, finite model that generates. Raises InputError with every problem found."""
    folder = Path(folder)
    problems = []
    if not (folder / "config.json").exists():
        problems.append(f"{folder}: config.json is missing")
    try:
        checkpoint = Checkpoint(folder)
        problems += [
            f"{folder}: tensor {name} holds NaN or Inf: the merge overflowed; widen out_dtype or lower the weights"
            for name in checkpoint.entries
            if not is_finite(checkpoint.read(name))
        ]
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(problems)
    check_generates(folder)


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite. The sum settles it in one cheap pass, unless it overflows."""
    if not tensor.is_floating_point():
        return True
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def check_generates(folder: Path) -> None:
    """Load the model and its tokenizer in transformers and generate a few tokens greedily."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = model_class(folder).from_pretrained(folder, dtype="auto", output_loading_info=True)
    except Exception as error:
        raise InputError(f"{folder}: does not load in transformers: {error}") from error
    wrong = {kind: sorted(info[kind])[:3] for kind in ("missing_keys", "unexpected_keys") if info.get(kind)}
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


def model_class(folder: Path):
    """The model's own class, for its imports cost less than the auto class's search; else the auto class."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    kind, names = config.get("model_type", ""), config.get("architectures") or [""]
    try:
        module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        return getattr(module, names[0])
    except (ImportError, AttributeError):
        return transformers.AutoModelForCausalLM


def prompt(folder: Path, vocab_size: int) -> torch.Tensor:
    """A short prompt of token ids (1, n), from the model's tokenizer where it has one."""
    if not any((folder / name).exists() for name in TOKENIZERS):
        return torch.arange(min(4, vocab_size))[None]
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)("1 + 1 =", return_tensors="pt").input_ids
    return ids if ids.numel() else torch.zeros((1, 1), dtype=torch.int64)
