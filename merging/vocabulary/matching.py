"""The models of a merge matched with the tokens that its output has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from merging.digest import json_digest
from merging.errors import InputError
from merging.inputs import Model
from merging.recipe import Recipe
from merging.vocabulary.token_rows import TokenRows, row_index
from merging.vocabulary.tokenizer import Tokenizer, check_loads, read_tokenizer
from merging.vocabulary.union import Vocabulary, of_model, union

SHOWN = 3  # tokens named in a note


@dataclass(frozen=True)
class Matching:
    """The models, their rows of tokens as the output has them, and whose tokenizer files it takes with which changes.

    `key` tells one order of rows from another; None where rows are taken by position. `tokenizer` is for people.
    """

    models: dict[str, Model]
    source: str
    tokenizer: str
    added: list[dict]
    key: str | None
    notes: list[str]


def match(recipe: Recipe, opened: dict[str, Model]) -> Matching:
    """The inputs of a recipe, those that could be opened, matched by token where it asks for that. Reads tokenizers.

    Raises InputError with every problem: a tokenizer that is not there, cannot be read, or cannot be made.
    """
    choice, frame = recipe.vocabulary, recipe.frame
    if choice.source == "base" and not choice.pad_to_multiple_of:
        return Matching(opened, frame, f"that of {frame}", [], None, [])
    tokenizers, problems = {}, []
    for name, model in opened.items():
        try:
            tokenizers[name] = read_tokenizer(model.checkpoint.folder)
        except InputError as error:
            problems += [f"{problem}, or use tokenizer_source: base" for problem in error.problems]
        if not model.table:
            problems.append(f"{model.checkpoint.folder}: no embedding whose rows are tokens, or an empty one")
    if problems:
        raise InputError(problems)
    if len(opened) < len(recipe.inputs):
        return unmatched(recipe, opened)
    tables = {name: model.table for name, model in opened.items()}
    if choice.source == "union":
        vocabulary = union(frame, tokenizers, tables)
    else:
        vocabulary = of_model(frame if choice.source == "base" else choice.source, tokenizers, tables)
    if multiple := choice.pad_to_multiple_of:
        vocabulary = replace(vocabulary, rows=-(-vocabulary.rows // multiple) * multiple)
    return matching(frame, vocabulary, opened, tokenizers)


def unmatched(recipe: Recipe, opened: dict[str, Model]) -> Matching:
    """For a merge that is refused: the models as if each had a row for each token, so that only the rest is judged."""
    rows = TokenRows(torch.arange(max((model.table for model in opened.values()), default=0)))
    return Matching({name: model.matched(rows) for name, model in opened.items()}, recipe.frame, "", [], None, [])


def matching(
    frame: str, vocabulary: Vocabulary, opened: dict[str, Model], tokenizers: Mapping[str, Tokenizer]
) -> Matching:
    """The models matched with a vocabulary; they stay as they are where each has its rows in the right places."""
    source, ids, rows = vocabulary.source, vocabulary.ids, vocabulary.rows
    index = {name: row_index(ids, rows, tokenizers[name].ids, model.table) for name, model in opened.items()}
    in_place = torch.arange(rows)
    same = rows == opened[frame].table and all(torch.equal(found, in_place) for found in index.values())
    if not same or vocabulary.added:
        check_loads(tokenizers[source].folder, vocabulary.added, ids)
    donors = sorted(
        name for name, tokenizer in tokenizers.items() if any(e["content"] in tokenizer.added for e in vocabulary.added)
    )
    notes = []
    text = f"that of {source}"
    if vocabulary.added:
        count = f"{len(vocabulary.added)} added token{'s' if len(vocabulary.added) > 1 else ''} of {', '.join(donors)}"
        text = f"that of {source} and {count}"
        notes.append(f"tokenizer: {text}: {listed([entry['content'] for entry in vocabulary.added])}")
    if same:
        return Matching(opened, source, text, vocabulary.added, None, notes)
    for name, model in opened.items():
        lacking = [token for token, id in ids.items() if id < rows and not 0 <= index[name][id] < model.table]
        if lacking:
            notes.append(f"{name}: has no row for {listed(sorted(lacking))}: the mean of its rows is taken")
    models = {name: model.matched(TokenRows(index[name])) for name, model in opened.items()}
    return Matching(models, source, text, vocabulary.added, json_digest([rows, dict(ids)]), notes)


def listed(tokens: list[str]) -> str:
    """Some tokens for people: the first of many."""
    more = f" and {len(tokens) - SHOWN} more" if len(tokens) > SHOWN else ""
    return ", ".join(map(repr, tokens[:SHOWN])) + more
