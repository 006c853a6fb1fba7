"""The tokens of a merge's output: whose tokenizer it has, what is added to it, and which row each token has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from merging.errors import InputError
from merging.vocabulary.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The output's tokens. `added` are entries for the tokenizer files, beyond those of the model `source`."""

    source: str
    ids: Mapping[str, int]
    rows: int
    added: list[dict]


def union(frame: str, tokenizers: Mapping[str, Tokenizer], tables: Mapping[str, int]) -> Vocabulary:
    """All tokens of all models: the frame's with their ids, then the others by their text, whatever the models' order.

    `tables` are the models' numbers of rows. Raises InputError where a model cuts text into other tokens than the
    frame does, which no tokenizer could do as both do.
    """
    base = tokenizers[frame]
    problems = [
        line for name, other in tokenizers.items() if name != frame for line in unlike(base, other, frame, name)
    ]
    if problems:
        raise InputError(problems)
    candidates: dict[str, list[dict]] = {}
    for tokenizer in tokenizers.values():
        for token, entry in tokenizer.added.items():
            if token not in base.ids:
                candidates.setdefault(token, []).append(entry)
    first = max(base.ids.values(), default=-1) + 1
    added = [{**preferred(candidates[token]), "id": first + i} for i, token in enumerate(sorted(candidates))]
    ids = {**base.ids, **{entry["content"]: entry["id"] for entry in added}}
    return Vocabulary(frame, ids, rows_needed(frame, ids, tokenizers, tables, added), added)


def of_model(name: str, tokenizers: Mapping[str, Tokenizer], tables: Mapping[str, int]) -> Vocabulary:
    """The tokens of one model, with its ids."""
    ids = tokenizers[name].ids
    return Vocabulary(name, ids, rows_needed(name, ids, tokenizers, tables, []), [])


def preferred(entries: list[dict]) -> dict:
    """One of the ways models add a token, the same for any order of them; a special one if there is one."""
    return min(entries, key=lambda entry: (not entry.get("special"), json.dumps({**entry, "id": 0}, sort_keys=True)))


def rows_needed(source: str, ids, tokenizers: Mapping[str, Tokenizer], tables: Mapping[str, int], added) -> int:
    """The rows of the output's tables: the source's, padding and all, and more where a token needs one.

    A token of the source that no model has a row for needs none: the models could not use it either.
    """
    table = tables[source]
    rooted = {entry["id"] for entry in added}
    for name, tokenizer in tokenizers.items():
        rooted |= {ids[token] for token, id in tokenizer.ids.items() if id < tables[name] and token in ids}
    rows = max([table, *(id + 1 for id in rooted)])
    if rows > max(table, max(tables.values())) + len(ids):
        raise InputError(f"{tokenizers[source].folder}: a token has the id {rows - 1}, far beyond the {table} rows")
    return rows


def unlike(base: Tokenizer, other: Tokenizer, frame: str, name: str) -> list[str]:
    """A line if two tokenizers differ in more than their added tokens and in what ids they give."""
    advice = "use tokenizer_source: base, or name the model whose tokenizer the output shall have"
    where = "tokenizer_source: union"
    if base.kind != other.kind:
        return [f"{where}: {name} has a tokenizer of type {other.kind}, {frame} of {base.kind}; {advice}"]
    either = base.added.keys() | other.added.keys()
    for these, those, whose, lacks in ((base, other, frame, name), (other, base, name, frame)):
        only = [(these.ids[token], token) for token in these.own - those.own - either]
        if only:
            id, token = min(only)
            return [
                f"{where}: {lacks} has no token {token!r} (id {id} in {whose}), which its tokenizer "
                f"would need to cut text as {whose} does ({len(only)} such tokens); {advice}"
            ]
    for i, (mine, theirs) in enumerate(zip(base.merges, other.merges, strict=False)):
        if mine != theirs and pair(mine) != pair(theirs):
            return [f"{where}: merge {i} of {name} is {pair(theirs)}, but {pair(mine)} in {frame}; {advice}"]
    if len(base.merges) != len(other.merges):
        return [f"{where}: {name} has {len(other.merges)} merges, {frame} has {len(base.merges)}; {advice}"]
    return []


def pair(merge: str | list[str]) -> tuple[str, ...]:
    """A merge's two tokens; older files join them with a space."""
    return tuple(merge.split(" ") if isinstance(merge, str) else merge)
