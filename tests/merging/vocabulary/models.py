"""Recipes and tiny models with tokenizers, and a second implementation of matching rows by token."""

from pathlib import Path

import torch

from merging.recipe import Recipe
from merging.tensor_file import load_tensors

WORDS = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, 16))]
TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def tokenizer(added=(), words=WORDS, decoder=False, special=True, **model) -> dict[str, dict]:
    """Tokenizer files: words, the first three special, and tokens added after them; `decoder`: listed twice."""

    def entry(id, content, special):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": id, "content": content, **flags, "special": special}

    entries = [entry(words.index(w), w, True) for w in WORDS[:3] if w in words]
    entries += [entry(len(words) + i, token, special) for i, token in enumerate(added)]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    if decoder:
        config["added_tokens_decoder"] = {str(e["id"]): {k: v for k, v in e.items() if k != "id"} for e in entries}
    vocab = {word: i for i, word in enumerate(words)}
    return {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": entries,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>", **model},
        },
        "tokenizer_config.json": config,
    }


def recipe(method="task_arithmetic", order=("one", "two"), source="union", weights=None, **keys) -> Recipe:
    weights = weights or {"one": 0.7, "two": 0.5}
    models = [{"model": name, "parameters": {"weight": weights.get(name, 1.0)}} for name in order]
    return Recipe.parse(
        {"merge_method": method, "base_model": "base", "models": models, "tokenizer_source": source, **keys}
    )


def ids_of(folder: Path) -> dict[str, int]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).get_vocab()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.safetensors")[0]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


def by_token(out: Path, folders: dict, table: str, weights=(("one", 0.7), ("two", 0.5)), stored=None) -> dict:
    """Task arithmetic token by token in fp64: {token: row}, from transformers' ids of the output and the inputs."""

    def rows(name) -> dict:
        weight = tensors_of(folders[name])[stored or table].double()
        ids = ids_of(folders[name])
        return {t: weight[ids[t]] if ids.get(t, len(weight)) < len(weight) else weight.mean(0) for t in ids_of(out)}

    base = rows("base")
    experts = [(rows(name), weight) for name, weight in weights]
    return {
        token: row + sum(weight * (expert[token] - row) for expert, weight in experts) for token, row in base.items()
    }


def assert_by_token(out: Path, folders: dict, tables=TABLES, **keys) -> None:
    for table in tables:
        found, expected = tensors_of(out)[table].double(), by_token(out, folders, table, **keys)
        for token, id in ids_of(out).items():
            torch.testing.assert_close(found[id], expected[token], atol=1e-6, rtol=0, msg=f"{table} {token}")
