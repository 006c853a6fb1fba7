"""The calibration set: texts, or token ids, cut into blocks of one length (AIM, arXiv 2502.02421)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.digest import file_sha256
from merging.errors import InputError
from merging.inputs import read_config
from merging.tensor_file import load_tensors

LONGEST = 512  # tokens; longer documents are left out, as in the published calibration set
IDS = "input_ids"


@dataclass(frozen=True)
class CalibrationSet:
    """`blocks`: int64 token ids (blocks, length). `about` describes them, as metadata; `note` is for a person."""

    blocks: torch.Tensor
    about: dict[str, str]
    note: str | None = None


def read_texts(path: str | Path) -> list[str]:
    """The texts of a JSONL file: objects with a `text` field, or plain strings. InputError names the line."""
    problems, texts = [], []
    try:
        lines = Path(path).read_text().split("\n")  # a text may hold other characters that break lines
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
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


def token_blocks(texts: Iterable[str], model_dir: str | Path, samples: int = 256, block: int = 512) -> CalibrationSet:
    """The calibration set that texts give for a model.

    Each text is stripped and encoded with the tokenizer's own special tokens; those empty or longer than 512 tokens are
    left out; the first `samples` are joined and cut into blocks of `block` tokens, the tail dropped. InputError if
    nothing is left, or for a token the model does not have.
    """
    tokenizer = load_tokenizer(model_dir)
    tokens: list[int] = []
    lengths: list[int] = []
    for text in texts:
        if len(lengths) == samples:
            break
        ids = tokenizer.encode(text.strip())
        if ids and len(ids) <= LONGEST:
            tokens += ids
            lengths.append(len(ids))
    count = len(tokens) // block
    if count == 0:
        raise InputError(f"calibration: {len(lengths)} texts give {len(tokens)} tokens, less than one block of {block}")
    blocks = torch.tensor(tokens[: count * block], dtype=torch.int64).view(count, block)
    refuse_unknown_tokens("calibration", blocks, model_dir)
    about = {"samples": str(len(lengths)), "lengths": length_statistics(lengths)}
    ended = f"the texts ended after {len(lengths)} that can be used, of {samples} wanted"
    return CalibrationSet(blocks, about, ended if len(lengths) < samples else None)


def load_tokenizer(model_dir: str | Path):
    """A model's tokenizer. Raises InputError where transformers cannot load it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_dir)
    except Exception as error:  # transformers' own are of many kinds
        raise InputError(f"{model_dir}: its tokenizer does not load: {' '.join(str(error).split())}") from error


def read_token_blocks(path: str | Path, model_dir: str | Path) -> CalibrationSet:
    """The calibration set in a safetensors file: int64 `input_ids` of shape (blocks, length).

    Raises InputError naming the file, also for a token the model does not have.
    """
    tensors, _ = load_tensors(Path(path))
    blocks = tensors.get(IDS)
    if blocks is None:
        raise InputError(f"{path}: has no tensor {IDS}; it has {', '.join(sorted(tensors)[:5]) or 'none'}")
    if blocks.dtype != torch.int64 or blocks.dim() != 2 or blocks.numel() == 0:
        found = f"{blocks.dtype} of shape {list(blocks.shape)}"
        raise InputError(f"{path}: {IDS} is {found}; it must be int64 token ids of shape (blocks, length)")
    refuse_unknown_tokens(path, blocks, model_dir)
    lengths = length_statistics([blocks.shape[1]] * len(blocks))
    return CalibrationSet(blocks, {"samples": str(len(blocks)), "lengths": lengths})


def refuse_unknown_tokens(where: str | Path, blocks: torch.Tensor, model_dir: str | Path) -> None:
    """Raises InputError for a token id (of blocks, length) outside the model's vocabulary."""
    config = read_config(Path(model_dir) / "config.json")
    size = config.get("text_config", config).get("vocab_size")
    wrong = (blocks < 0) | (blocks >= size) if size else torch.zeros_like(blocks, dtype=torch.bool)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        raise InputError(
            f"{where}: token id {blocks[row, column].item()} in block {row}, but {model_dir} has ids 0 to {size - 1}; "
            "the calibration set is for another tokenizer"
        )


def length_statistics(lengths: list[int]) -> str:
    """The texts' lengths in tokens, in JSON: least, mean and greatest."""
    return json.dumps({"min": min(lengths), "mean": round(sum(lengths) / len(lengths), 2), "max": max(lengths)})


def texts_digest(path: str | Path) -> str:
    """What a file of texts or token blocks is in a calibration's digest: the sha256 of its bytes.

    Raises InputError where there is no such file.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
