"""Tokenizers and recipes that cannot be matched."""

import json

import pytest
import torch

from merging.engine import merge
from merging.errors import InputError
from merging.preflight import preflight
from merging.recipe import Recipe
from tests.merging.vocabulary.models import (
    WORDS,
    assert_by_token,
    ids_of,
    recipe,
    tokenizer,
)


def problems(models, **keys) -> list[str]:
    with pytest.raises(InputError) as caught:
        preflight(recipe(**keys), models)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"tokenizer_source": "onne"}, "tokenizer_source: 'onne' is no model of this recipe; did you mean one?"),
        ({"tokenizer": {"source": "three"}}, "tokenizer.source: 'three' is no model of this recipe"),
        ({"tokenizer_source": "base", "tokenizer": {}}, "tokenizer_source, tokenizer: both are there; keep one"),
        ({"tokenizer": {"tokens": {"<a>": {"source": "one"}}}}, "tokenizer.tokens: rows cannot be chosen by token"),
        ({"tokenizer": {"sauce": "one"}}, "unknown key; did you mean source?"),
        ({"tokenizer": {"pad_to_multiple_of": 0}}, "tokenizer.pad_to_multiple_of"),
        ({"tokenizer": "union"}, "tokenizer"),
    ],
)
def test_a_recipe_that_asks_for_what_there_is_not(keys, expected):
    data = recipe(source=None).model_dump(exclude_none=True)
    with pytest.raises(InputError) as caught:
        Recipe.parse(data | keys)
    assert expected in "\n".join(caught.value.problems)


@pytest.mark.parametrize("source", ["union", "one"])
def test_models_without_a_tokenizer_file_are_all_named(family, source):
    (family["base"] / "tokenizer.json").unlink()
    (family["two"] / "tokenizer.json").write_text("{")
    (family["two"] / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = problems(family, source=source)
    assert len(found) == 3
    assert "base: there is no tokenizer.json" in found[0]
    assert "two/tokenizer.json: not a tokenizer" in found[1]
    assert all(problem.endswith("or use tokenizer_source: base") for problem in found[:2])
    assert "two: architecture None" in found[2]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"model": {}}',
        '{"model": {"vocab": {"a": -1}}}',
        '{"model": {"vocab": {"a": 4294967296}}}',
        '{"model": {"vocab": {"a": true}}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": ["x"]}]}',
        '{"model": {"vocab": {"a": 0}, "merges": [3]}}',
    ],
)
def test_a_file_that_is_no_tokenizer(family, text):
    (family["one"] / "tokenizer.json").write_text(text)
    (problem,) = problems(family)
    assert "one/tokenizer.json: not a tokenizer" in problem


def bpe(merges) -> dict:
    letters = ["a", "b", "c"]
    return {"vocab": {t: i for i, t in enumerate(letters + ["".join(m) for m in merges])}, "merges": merges}


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        ({}, {"words": [*WORDS, "extra"]}, "base has no token 'extra' (id 16 in one)"),
        ({"words": [*WORDS, "extra", "more"]}, {}, "one has no token 'extra' (id 16 in base)"),
        ({}, {"type": "WordPiece"}, "one has a tokenizer of type WordPiece, base of WordLevel"),
        (
            {"type": "BPE", **bpe([["a", "b"], ["b", "c"]])},
            {"type": "BPE", **bpe([["b", "c"], ["a", "b"]])},
            "merge 0 of one is ('b', 'c'), but ('a', 'b') in base",
        ),
        (
            {"type": "BPE", **bpe([["a", "b"]])},
            {"type": "BPE", **bpe([["a", "b"], ["ab", "c"]])},
            "base has no token 'abc' (id 4 in one)",
        ),
    ],
)
def test_tokenizers_that_cut_text_differently_have_no_union(family, mine, theirs, expected):
    for name, keys in (("base", mine), ("one", theirs)):
        (family[name] / "tokenizer.json").write_text(json.dumps(tokenizer(**keys)["tokenizer.json"]))
    del family["two"]
    (problem,) = problems(family, order=("one",))
    assert expected in problem
    assert "use tokenizer_source: base" in problem


@pytest.mark.usefixtures("without_postflight")
def test_merges_written_in_two_ways_and_ids_that_differ_are_no_difference(make, tmp_path):
    pairs = bpe([["a", "b"], ["ab", "c"]])
    texts = {"vocab": {t: (i + 1) % 5 for t, i in pairs["vocab"].items()}, "merges": ["a b", "ab c"]}
    folders = {
        "base": make("base", 0, rows=5, type="BPE", **pairs, words=[]),
        "one": make("one", 1, rows=5, type="BPE", **texts, words=[]),
    }
    for folder in folders.values():
        data = json.loads((folder / "tokenizer.json").read_text())
        data["model"]["unk_token"] = None
        (folder / "tokenizer.json").write_text(json.dumps(data))
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    merge(recipe(order=("one",)), tmp_path / "out", models=folders)
    assert ids_of(tmp_path / "out") == pairs["vocab"]
    assert_by_token(tmp_path / "out", folders, weights=(("one", 0.7),))


def test_an_id_far_beyond_the_table_is_refused(family):
    data = tokenizer(["<far>"])["tokenizer.json"]
    data["added_tokens"][-1]["id"] = 10**9
    (family["base"] / "tokenizer.json").write_text(json.dumps(data))
    (problem,) = problems(family)
    assert "far beyond the 16 rows" in problem


def test_ids_that_transformers_does_not_give_are_refused(family):
    data = tokenizer(["<late>"])["tokenizer.json"]
    data["added_tokens"][-1]["id"] = 20
    (family["base"] / "tokenizer.json").write_text(json.dumps(data))
    (problem,) = problems(family)
    assert "token '<late>' has the id 20, but transformers gives it 16" in problem


def test_a_tokenizer_that_does_not_load_is_refused_before_the_merge(family):
    data = tokenizer()["tokenizer.json"] | {"pre_tokenizer": {"type": "Nonsense"}}
    (family["base"] / "tokenizer.json").write_text(json.dumps(data))
    (problem,) = problems(family)
    assert "its tokenizer does not load in transformers" in problem


def test_a_table_without_rows_is_refused(family, make):
    def empty(tensors):
        tensors["lm_head.weight"] = torch.zeros(0, 8)

    family["one"] = make("empty", 1, change=empty)
    (problem,) = problems(family)
    assert "empty: no embedding whose rows are tokens, or an empty one" in problem


def test_a_missing_model_is_told_beside_what_is_wrong_with_tokenizers(family):
    (family["two"] / "tokenizer.json").unlink()
    del family["one"]
    found = problems(family)
    assert found[0] == "one: no folder was given for this model"
    assert "two: there is no tokenizer.json" in found[1]
    assert len(found) == 2
