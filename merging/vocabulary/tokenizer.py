"""A model's tokenizer as its files have it: the id of each token, and what makes tokens of text."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from merging.digest import TOKENIZER_FILES, is_model_file
from merging.errors import InputError

FILE = "tokenizer.json"


@dataclass(frozen=True)
class Tokenizer:
    """What tokenizer.json says.

    `ids` are of all tokens by their text; `added` are the entries of those that are found in a text before the rest of
    it is cut; `kind`, `own` and `merges` are of the algorithm that cuts the rest: its name, its tokens, and its merges
    in order (none but for BPE).
    """

    folder: Path
    ids: Mapping[str, int]
    added: Mapping[str, dict]
    kind: str | None
    own: frozenset[str]
    merges: list[str | list[str]]


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder. Raises InputError naming the file."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        model, added = data["model"], {entry["content"]: entry for entry in data.get("added_tokens") or []}
        vocab = model["vocab"]
        own = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        # a token that the algorithm knows keeps the id it has there: so the tokenizers library reads these files
        ids = {token: entry["id"] for token, entry in added.items()} | own
        merges = model.get("merges") or []
        good = all(isinstance(token, str) and type(id) is int and 0 <= id < 1 << 32 for token, id in ids.items())
        good = good and all(isinstance(merge, str | list) for merge in merges)
    except FileNotFoundError:
        raise InputError(f"{folder}: there is no {FILE}, so its tokens are not known; save a fast tokenizer") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a tokenizer: {' '.join(repr(error).split())}") from None
    if not good:
        raise InputError(f"{path}: not a tokenizer: its ids must be numbers of 32 bits, its merges pairs of tokens")
    return Tokenizer(folder, ids, added, model.get("type"), frozenset(own), merges)


def is_tokenizer_file(name: str) -> bool:
    """Whether a model file of this relative name belongs to the tokenizer or is a chat template."""
    return is_model_file(name) and (name in TOKENIZER_FILES or name.startswith("additional_chat_templates/"))


def write_tokenizer(source: Path, added: list[dict], folder: Path) -> None:
    """Copy the tokenizer files of `source` into `folder`, with `added` (entries as in tokenizer.json) in each."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if path.is_file() and is_tokenizer_file(name):
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / name)  # not the mode: a reader in another container may be another user
    if not added:
        return
    edit(folder / FILE, lambda data: data.setdefault("added_tokens", []).extend(added))
    edit(folder / "tokenizer_config.json", lambda data: add_to_decoder(data, added))
    edit(folder / "added_tokens.json", lambda data: data.update({entry["content"]: entry["id"] for entry in added}))


def add_to_decoder(config: dict, added: list[dict]) -> None:
    """The entries in a tokenizer_config.json that lists added tokens too: some tokenizers are made from that list."""
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"] |= {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        }


def edit(path: Path, change) -> None:
    """Change a JSON file in place, if it is there."""
    if path.exists():
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_loads(source: Path, added: list[dict], ids: Mapping[str, int]) -> None:
    """Write the output's tokenizer to a folder for a moment, and load it in transformers.

    Raises InputError if that fails, or gives a token another id than `ids` does.
    """
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="mergeflow-tokenizer-") as folder:
        try:
            write_tokenizer(source, added, Path(folder))
            shutil.copyfile(source / "config.json", Path(folder) / "config.json")
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True).get_vocab()
        except Exception as error:
            about = " ".join(str(error).split())
            raise InputError(f"{source}: its tokenizer does not load in transformers: {about}") from error
    wrong = [(id, token) for token, id in ids.items() if found.get(token) != id]
    if wrong:
        id, token = min(wrong)
        raise InputError(
            f"{source / FILE}: token {token!r} has the id {id}, but transformers gives it {found.get(token)}; "
            "save this tokenizer anew, or use tokenizer_source: base"
        )
