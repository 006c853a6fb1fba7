"""Digests: what a file, a value, a model and a calibration are, apart from where they lie. Imports no torch."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
CALIBRATION_VERSION = 2  # changes whenever the activation statistics change by more than rounding
CONSENSUS_VERSION = 1  # changes whenever the mutual information changes by more than rounding
CONFIG_FILES = frozenset({"config.json", "generation_config.json"})


def file_sha256(path: str | Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value) -> str:
    """The sha256, in hex, of a value's canonical JSON: sorted keys, no spaces, ASCII, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_model_file(name: str) -> bool:
    """Whether a file of this relative name is part of a model: weights, configs, tokenizer, chat template.

    Only files that transformers loads count: those at the top of the folder. Pickles never do.
    """
    path = PurePosixPath(name)
    if len(path.parts) != 1:
        return len(path.parts) == 2 and path.parts[0] == "additional_chat_templates" and path.suffix == ".jinja"
    if path.name in TOKENIZER_FILES or path.name in CONFIG_FILES:
        return True
    # consolidated*.safetensors: a second copy of the weights, in Mistral's own layout, which transformers never reads
    weights = name.endswith((".safetensors", ".safetensors.index.json"))
    return weights and not name.startswith(("consolidated", "."))


def model_files(folder: str | Path) -> dict[str, dict]:
    """`{relative name: {"sha256": hex, "size": bytes}}` of the model files in a local folder, sorted by name."""
    folder = Path(folder)
    found = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return {
        name: {"sha256": file_sha256(names[name]), "size": names[name].stat().st_size}
        for name in sorted(names)
        if is_model_file(name)
    }


def model_digest(files: Mapping[str, Mapping]) -> str:
    """A model's digest, from what `model_files` gives: names and contents alone, so that all copies agree."""
    return json_digest({name: entry["sha256"] for name, entry in files.items() if is_model_file(name)})


def calibration_digest(model_digest: str, texts_sha256: str, samples: int, block: int) -> str:
    """The digest of the activation statistics of a model on a calibration set."""
    settings = {"texts": texts_sha256, "samples": samples, "block": block}
    return json_digest({"calibration": CALIBRATION_VERSION, "model": model_digest, **settings})


def consensus_digest(base: str, against: str, texts_sha256: str, samples: int, longest: int | None) -> str:
    """The digest of what a base and another model have in common on texts, each a sample of at most `longest` tokens.

    `against` is the other model's digest, or its recipe's.
    """
    models, texts = [base, against], [texts_sha256, samples, longest]
    return json_digest({"consensus": CONSENSUS_VERSION, "models": models, "texts": texts})
