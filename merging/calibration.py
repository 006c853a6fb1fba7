"""Activation statistics of a base model on a calibration set (AIM, arXiv 2502.02421)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import nn

from merging.errors import InputError
from merging.mapped_model import model_class
from merging.tensor_file import save_tensors

LONGEST = 512  # tokens; longer documents are left out, as in the published calibration set


def read_texts(path: str | Path) -> list[str]:
    """The texts of a JSONL file: objects with a `text` field, or plain strings. InputError names the line."""
    problems, texts = [], []
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            problems.append(f"{path}:{number}: not valid JSON: {error}")
            continue
        text = value.get("text") if isinstance(value, dict) else value
        if not isinstance(text, str):
            problems.append(f'{path}:{number}: expected {{"text": "..."}} or a string, found {line[:60]}')
            continue
        texts.append(text)
    if not problems and not texts:
        problems = [f"{path}: holds no text"]
    if problems:
        raise InputError(problems[:5])
    return texts


def token_blocks(texts: Iterable[str], tokenizer_dir: str | Path, samples: int = 256, block: int = 512) -> torch.Tensor:
    """The calibration set as int64 token ids of shape (blocks, block).

    Each text is stripped and encoded with the tokenizer's own special tokens; those empty or longer than 512 tokens are
    left out; the first `samples` are joined and cut into blocks, the tail dropped. InputError if nothing is left.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    tokens: list[int] = []
    taken = 0
    for text in texts:
        if taken == samples:
            break
        ids = tokenizer.encode(text.strip())
        if ids and len(ids) <= LONGEST:
            tokens += ids
            taken += 1
    count = len(tokens) // block
    if count == 0:
        raise InputError(f"calibration: {taken} texts give {len(tokens)} tokens, less than one block of {block}")
    return torch.tensor(tokens[: count * block], dtype=torch.int64).view(count, block)


def calibrate(
    model_dir: str | Path,
    blocks: torch.Tensor,
    out: str | Path,
    *,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the activation statistics of a model to the safetensors file `out`.

    One fp32 vector per module that has a weight (embeddings excepted), named as the module: the mean over tokens of
    `|x|` per channel of the module's first input, summed over `blocks` (int64, (blocks, length)), one block a time.
    The model runs in fp32. `progress(done, total, label)` is called after each block.
    """
    model = model_class(Path(model_dir)).from_pretrained(model_dir, dtype=torch.float32).to(device).eval()
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str):
        def hook(_module, inputs):
            seen = inputs[0].detach().abs().flatten(0, -2).mean(0, dtype=torch.float32)
            sums[name] = sums[name].add_(seen) if name in sums else seen

        return hook

    hooks = [
        module.register_forward_pre_hook(watch(name))
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter) and not isinstance(module, nn.Embedding)
    ]
    with torch.no_grad():
        for done, ids in enumerate(blocks, start=1):
            model(ids[None].to(device), use_cache=False)
            if progress:
                progress(done, len(blocks), "calibration block")
    for hook in hooks:
        hook.remove()
    described = {"blocks": str(len(blocks)), "tokens": str(blocks.numel()), "dtype": "float32", **(metadata or {})}
    save_tensors(Path(out), {name: s.cpu() for name, s in sums.items()}, described)
