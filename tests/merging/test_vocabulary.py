"""Rows matched with tokens: whose tokens the output has, which row each gets, and what cannot be matched."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from merging.engine import merge, merge_many
from merging.errors import InputError
from merging.preflight import preflight
from merging.recipe import Recipe
from merging.tensor_file import load_tensors, save_tensors
from merging.vocabulary.token_rows import TokenRows, mean_row, row_index
from merging.vocabulary.tokenizer import write_tokenizer

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


@pytest.fixture
def make(make_model):
    """`make(name, seed, rows=16, added=(), change=None, config={}, **tokenizer)`: a model with a tokenizer."""

    def make(name, seed, rows=16, added=(), change=None, config=None, **keys) -> Path:
        def resize(tensors):
            generator = torch.Generator().manual_seed(seed + 1000)
            for table in TABLES:
                tensors[table] = torch.randn(rows, 8, generator=generator) * 0.1
            if change:
                change(tensors)

        folder = make_model(name, seed, change=resize, vocab_size=rows, **(config or {}))
        for file, data in tokenizer(added, **keys).items():
            (folder / file).write_text(json.dumps(data))
        return folder

    return make


@pytest.fixture
def family(make):
    """A base, and two experts that added one token in common, under different ids, and one of their own each."""
    return {
        "base": make("base", 0),
        "one": make("one", 1, rows=18, added=["<tool>", "<pad>"]),
        "two": make("two", 2, rows=18, added=["<pad>", "<eot>"]),
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


def test_a_union_has_the_tokens_of_all_and_each_row_by_its_token(family, tmp_path):
    found = merge(recipe(), tmp_path / "out", models=family)
    ids = ids_of(tmp_path / "out")
    assert ids == {**{word: i for i, word in enumerate(WORDS)}, "<eot>": 16, "<pad>": 17, "<tool>": 18}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 19
    assert_by_token(tmp_path / "out", family)
    assert "tokenizer: that of base and 3 added tokens of one, two: '<eot>', '<pad>', '<tool>'" in found["notes"]
    assert "| Tokenizer | that of base and 3 added tokens of one, two |" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("decoder", [False, True])
def test_the_unions_tokenizer_encodes_as_the_bases_and_knows_the_added_tokens(family, tmp_path, decoder):
    from transformers import AutoTokenizer

    for file, data in tokenizer(decoder=decoder).items():
        (family["base"] / file).write_text(json.dumps(data))
    merge(recipe(), tmp_path / "out", models=family)
    base, out = (AutoTokenizer.from_pretrained(folder) for folder in (family["base"], tmp_path / "out"))
    text = "w3 w4 </s> w15 unknown"
    assert out(text).input_ids == base(text).input_ids == [3, 4, 2, 15, 0]
    assert out("w3<tool>w4 <pad>").input_ids == [3, 18, 4, 17]
    assert out.decode([3, 18, 4, 17], skip_special_tokens=True) == out.decode([3, 4])
    listed = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()).get("added_tokens_decoder", {})
    assert ("18" in listed) == decoder


@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("kind", ["LlamaTokenizer", "Qwen2Tokenizer", "TokenizersBackend"])
def test_tokenizers_that_transformers_makes_anew_know_the_added_tokens(family, tmp_path, kind, decoder):
    """Some classes take words from tokenizer.json, but added tokens from tokenizer_config.json if it has them."""
    from transformers import AutoTokenizer

    for folder, added in ((family["base"], []), (family["one"], ["<tool>"]), (family["two"], ["<pad>", "<tool>"])):
        words = [*WORDS[:3], "▁", "Ġ", *"abcdefghijk"]
        files = tokenizer(added, words=words, decoder=decoder, type="BPE", merges=[])
        files["tokenizer_config.json"]["tokenizer_class"] = kind
        for file, data in files.items():
            (folder / file).write_text(json.dumps(data))
    plan = preflight(recipe(), family)
    write_tokenizer(family["base"], plan.matching.added, tmp_path)
    (tmp_path / "config.json").write_bytes((family["base"] / "config.json").read_bytes())
    base, out = (AutoTokenizer.from_pretrained(folder) for folder in (family["base"], tmp_path))
    assert out("abc kid").input_ids == base("abc kid").input_ids
    assert [i for i in out("ab<tool>c<pad>").input_ids if i > 3] == [*base.convert_tokens_to_ids(["a", "b"]), 17, 7, 16]


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties", "linear"])
@pytest.mark.usefixtures("without_postflight")
def test_neither_order_nor_names_change_a_byte(family, tmp_path, method):
    (family["two"] / "tokenizer.json").write_text(
        json.dumps(tokenizer(["<pad>", "<eot>"], special=False)["tokenizer.json"])
    )
    merge(recipe(method), tmp_path / "a", models=family)
    merge(recipe(method, order=("two", "one")), tmp_path / "b", models=family)
    renamed = {"base": family["base"], "z": family["one"], "a": family["two"]}
    merge(recipe(method, order=("a", "z"), weights={"z": 0.7, "a": 0.5}), tmp_path / "c", models=renamed)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b") == files_of(tmp_path / "c")
    entries = json.loads((tmp_path / "a" / "tokenizer.json").read_text())["added_tokens"]
    # where the experts add a token in two ways, it is special if one says so
    assert {e["content"]: e["special"] for e in entries[3:]} == {"<eot>": False, "<pad>": True, "<tool>": True}


@pytest.mark.parametrize("padded", [16, 20])
@pytest.mark.usefixtures("without_postflight")
def test_tokenizers_that_agree_give_the_bytes_of_base(make, tmp_path, padded):
    names = ["base", "one", "two"]
    folders = {name: make(name, seed, rows=padded, added=["<pad>"]) for seed, name in enumerate(names)}
    merge(recipe(source="base"), tmp_path / "base-out", models=folders)
    for source in ("union", "one"):
        merge(recipe(source=source), tmp_path / f"{source}-out", models=folders)
        assert files_of(tmp_path / f"{source}-out") == files_of(tmp_path / "base-out")


@pytest.mark.usefixtures("without_postflight")
def test_added_tokens_take_the_padding_and_what_is_left_of_it_stays(make, tmp_path):
    """Tables padded beyond the tokens: 24 rows for 16 tokens in the base, 20 and 18 in the experts."""
    folders = {
        "base": make("base", 0, rows=24),
        "one": make("one", 1, rows=20, added=["<b>", "<a>"]),
        "two": make("two", 2, rows=18),
    }
    merge(recipe(), tmp_path / "out", models=folders)
    out = tensors_of(tmp_path / "out")
    assert {len(out[table]) for table in TABLES} == {24}
    assert "vocab_size" in (tmp_path / "out" / "config.json").read_text()
    assert_by_token(tmp_path / "out", folders)
    for table in TABLES:
        base, one, two = (tensors_of(folders[name])[table].double() for name in ("base", "one", "two"))
        # row 18 is padding in base and one; two has none there
        expected = base[18] + 0.7 * (one[18] - base[18]) + 0.5 * (two.mean(0) - base[18])
        torch.testing.assert_close(out[table][18].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("without_postflight")
def test_a_token_without_a_row_gets_the_mean_row_in_a_union(make, tmp_path):
    """The id of an added token can lie above its model's table: also the base's own."""
    folders = {
        "base": make("base", 0, added=["<pad>"]),
        "one": make("one", 1, added=["<x>"]),
        "two": make("two", 2, rows=17, added=["<pad>"]),
    }
    merge(recipe(), tmp_path / "out", models=folders)
    assert len(tensors_of(tmp_path / "out")["lm_head.weight"]) == 18
    assert ids_of(tmp_path / "out")["<x>"] == 17
    assert_by_token(tmp_path / "out", folders)


@pytest.mark.usefixtures("without_postflight")
def test_the_tokens_of_an_expert(family, tmp_path):
    """Its tokenizer, template, ids and special tokens; the base's other settings. The base's lacking rows are means."""
    config = json.loads((family["base"] / "config.json").read_text())
    (family["base"] / "config.json").write_text(json.dumps(config | {"eos_token_id": 2, "pad_token_id": 0}))
    (family["two"] / "config.json").write_text(json.dumps(config | {"eos_token_id": [17, 2], "vocab_size": 18}))
    (family["base"] / "generation_config.json").write_text('{"eos_token_id": 2, "pad_token_id": 0, "top_k": 5}')
    (family["two"] / "generation_config.json").write_text('{"eos_token_id": [17, 2], "top_k": 9}')
    (family["base"] / "added_tokens.json").write_text("{}")
    (family["two"] / "chat_template.jinja").write_text("{{ messages }}")
    merge(recipe(source="two"), tmp_path / "out", models=family)
    out = files_of(tmp_path / "out")
    assert out["tokenizer.json"] == (family["two"] / "tokenizer.json").read_bytes()
    assert out["chat_template.jinja"] == b"{{ messages }}"
    assert "added_tokens.json" not in out
    found = json.loads(out["config.json"])
    assert (found["eos_token_id"], found["vocab_size"], "pad_token_id" in found) == ([17, 2], 18, False)
    assert json.loads(out["generation_config.json"]) == {"eos_token_id": [17, 2], "top_k": 5}
    assert_by_token(tmp_path / "out", family)


@pytest.mark.usefixtures("without_postflight")
def test_the_tokens_of_a_model_with_another_tokenizer_altogether(make, tmp_path):
    """Words in another order, some unknown to the others, and fewer of them."""
    folders = {
        "base": make("base", 0),
        "one": make("one", 1, rows=12, words=["w9", "<unk>", "<s>", "</s>", "new", *WORDS[3:10][::-1][1:]]),
        "two": make("two", 2, rows=18, added=["<pad>"]),
    }
    plan = preflight(recipe(source="one"), folders)
    assert plan.outputs["lm_head.weight"].shape == (12, 8)
    assert "base: has no row for 'new': the mean of its rows is taken" in plan.notes
    merge(recipe(source="one"), tmp_path / "out", models=folders)
    assert_by_token(tmp_path / "out", folders)


@pytest.mark.usefixtures("without_postflight")
def test_naming_the_base_matches_by_token_what_base_takes_by_position(make, tmp_path):
    swapped = [*WORDS[:3], "w4", "w3", *WORDS[5:]]
    folders = {"base": make("base", 0), "one": make("one", 1, words=swapped), "two": make("two", 2)}
    data = recipe(source="base").model_dump(exclude_none=True) | {"base_model": "b"}
    models = {"b": folders["base"], "one": folders["one"], "two": folders["two"]}
    merge(Recipe.parse(data | {"tokenizer_source": "b"}), tmp_path / "named", models=models)
    assert_by_token(tmp_path / "named", folders)
    merge(Recipe.parse(data), tmp_path / "kept", models=models)
    named, kept = (tensors_of(tmp_path / name)["lm_head.weight"] for name in ("named", "kept"))
    moved = [i for i in range(16) if not torch.equal(named[i], kept[i])]
    assert moved == [3, 4]


def tied(tensors):
    del tensors["lm_head.weight"]


def test_tied_stays_tied_and_aim_relaxes_the_new_rows_with_the_heads_statistics(make, tmp_path):
    config = {"tie_word_embeddings": True}
    folders = {
        "base": make("base", 0, change=tied, config=config),
        "one": make("one", 1, rows=17, added=["<a>"], change=tied, config=config),
        "two": make("two", 2, rows=17, added=["<b>"], change=tied, config=config),
    }
    vectors = {name.removesuffix(".weight"): torch.rand(t.shape[-1]) for name, t in tensors_of(folders["base"]).items()}
    save_tensors(tmp_path / "s.safetensors", vectors | {"lm_head": (s := torch.rand(8))})
    merge(recipe(aim={"omega": 0.4}), tmp_path / "out", models=folders, statistics=tmp_path / "s.safetensors")
    out = tensors_of(tmp_path / "out")
    assert "lm_head.weight" not in out
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    table = "model.embed_tokens.weight"
    merged = by_token(tmp_path / "out", folders, table)
    weight = tensors_of(folders["base"])[table].double()
    for token, id in ids_of(tmp_path / "out").items():
        base = weight[id] if id < 16 else weight.mean(0)
        expected = base + (merged[token] - base) * (1 - s.double() / s.max() * 0.6)
        torch.testing.assert_close(out[table][id].double(), expected, atol=1e-6, rtol=0)


def test_a_head_of_its_own_stays_one_beside_a_tied_expert(make, tmp_path):
    folders = {
        "base": make("base", 0),
        "one": make("one", 1, rows=17, added=["<a>"], change=tied, config={"tie_word_embeddings": True}),
        "two": make("two", 2),
    }
    merge(recipe(), tmp_path / "out", models=folders)
    out = tensors_of(tmp_path / "out")
    assert not torch.equal(out["lm_head.weight"], out["model.embed_tokens.weight"])
    assert_by_token(tmp_path / "out", folders, tables=TABLES[:1])
    base, one, two = (tensors_of(folders[name]) for name in folders)
    mine, other = base["lm_head.weight"].double().mean(0), two["lm_head.weight"].double().mean(0)
    expected = mine + 0.7 * (one["model.embed_tokens.weight"][16].double() - mine) + 0.5 * (other - mine)
    torch.testing.assert_close(out["lm_head.weight"][16].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("without_postflight")
def test_a_heads_bias_has_a_number_for_each_token(make, tmp_path):
    def bias(tensors):
        tensors["lm_head.bias"] = torch.linspace(-1, 1, len(tensors["lm_head.weight"]))

    folders = {
        "base": make("base", 0, change=bias),
        "one": make("one", 1, rows=17, added=["<a>"], change=bias),
        "two": make("two", 2, change=bias),
    }
    merge(recipe(), tmp_path / "out", models=folders)
    found = tensors_of(tmp_path / "out")["lm_head.bias"]
    assert found.shape == (17,)
    assert found[16].item() == pytest.approx(0.7, abs=1e-6)


@pytest.mark.usefixtures("without_postflight")
def test_a_stack_takes_the_rows_of_its_first_and_last_slice_by_token(family, tmp_path):
    def slice(model):
        return {"sources": [{"model": model, "layer_range": [0, 1]}]}

    stack = {"merge_method": "passthrough", "slices": [slice("base"), slice("two"), slice("one")]}
    merge(Recipe.parse(stack | {"tokenizer_source": "union"}), tmp_path / "out", models=family)
    out, base, one = (tensors_of(folder) for folder in (tmp_path / "out", family["base"], family["one"]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert torch.equal(out[embedding], torch.cat([base[embedding], mean_row(base[embedding]).expand(3, 8)]))
    # <eot> is in neither; <pad> and <tool> are the other way round in one
    assert torch.equal(out[head], torch.cat([one[head][:16], mean_row(one[head])[None], one[head][[17, 16]]]))


@pytest.mark.usefixtures("without_postflight")
def test_a_config_within_the_config_tells_the_rows_too(family, tmp_path):
    config = json.loads((family["base"] / "config.json").read_text())
    (family["base"] / "config.json").write_text(json.dumps(config | {"text_config": {"vocab_size": 16, "x": 1}}))
    merge(recipe(), tmp_path / "out", models=family)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["vocab_size"], found["text_config"]) == (19, {"vocab_size": 19, "x": 1})


@pytest.mark.usefixtures("without_postflight")
def test_one_reading_makes_only_what_has_the_same_rows(family, tmp_path):
    """The union of fewer experts has other rows; base and a model each have their own."""
    recipes = [recipe(), recipe(order=("two",)), recipe(source="base"), recipe(source="one"), recipe("ties")]
    together = [tmp_path / f"t{i}" for i in range(len(recipes))]
    merge_many(recipes, together, models=family)
    for i, one in enumerate(recipes):
        merge(one, tmp_path / f"a{i}", models=family)
        assert files_of(tmp_path / f"t{i}") == files_of(tmp_path / f"a{i}")


@pytest.mark.usefixtures("without_postflight")
def test_tables_are_filled_up_to_a_multiple_as_mergekit_does(family, tmp_path):
    data = recipe(source=None).model_dump(exclude_none=True)
    wanted = {"union": 24, "base": 16, "two": 24}
    for source, rows in wanted.items():
        chosen = Recipe.parse(data | {"tokenizer": {"source": source, "pad_to_multiple_of": 8}})
        merge(chosen, tmp_path / f"{source}-out", models=family)
        out = tensors_of(tmp_path / f"{source}-out")
        assert [len(out[table]) for table in TABLES] == [rows, rows]
        assert json.loads((tmp_path / f"{source}-out" / "config.json").read_text())["vocab_size"] == rows
        assert_by_token(tmp_path / f"{source}-out", family)
    base, one, two = (tensors_of(family[name])["lm_head.weight"].double().mean(0) for name in ("base", "one", "two"))
    expected = base + 0.7 * (one - base) + 0.5 * (two - base)
    found = tensors_of(tmp_path / "union-out")["lm_head.weight"]
    for row in range(19, 24):
        torch.testing.assert_close(found[row].double(), expected, atol=1e-6, rtol=0)


def test_a_plan_tells_shapes_bytes_and_where_tokens_come_from(family):
    kept, union = preflight(recipe(source="base"), family), preflight(recipe(), family)
    assert [union.outputs[table].shape for table in TABLES] == [(19, 8), (19, 8)]
    assert union.bytes_written == kept.bytes_written + 2 * 3 * 8 * 4
    assert union.bytes_read == kept.bytes_read
    assert "two: has no row for '<tool>': the mean of its rows is taken" in union.notes
    assert "base: has no row for '<eot>', '<pad>', '<tool>': the mean of its rows is taken" in union.notes


# What is refused


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


# Digests


def test_digests_tell_tokenizers_apart_by_content():
    models = {"base": "d0", "one": "d1", "two": "d2", "hub/one": "d1"}
    sources = [recipe(source=source).digest(models, None) for source in ("base", "union", "one", "two")]
    padded = recipe(source=None, tokenizer={"source": "union", "pad_to_multiple_of": 64}).digest(models, None)
    assert len({*sources, padded}) == 5
    renamed = recipe(order=("hub/one", "two"), weights={"hub/one": 0.7, "two": 0.5}, source="hub/one")
    assert renamed.digest(models, None) == sources[2]
    longer = recipe(source=None, tokenizer={})
    assert longer.digest(models, None) == sources[1]
    assert Recipe.parse(yaml.safe_load(longer.to_yaml())) == longer
    assert recipe(source=None).digest(models, None) == sources[0]


# Gathering


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 3), (7, 5), (4099, 513), (3001,)])
def test_the_mean_row_is_exact_whatever_the_threads(shape, dtype):
    table = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    kept = table.clone()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(mean_row(table))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(table, kept)
    expected = torch.from_numpy(table.double().numpy().mean(0, keepdims=True))[0]
    torch.testing.assert_close(found[0], expected.to(dtype), atol=1e-12 if dtype == torch.float64 else 0, rtol=1e-12)


def test_rows_are_gathered_by_any_blocks_and_copied_only_where_they_moved():
    table = torch.arange(10.0).reshape(5, 2)
    own = {"a": 0, "b": 1, "c": 3, "gone": 2, "above": 7}
    index = row_index({"a": 0, "b": 1, "new": 2, "c": 5, "above": 6}, 8, own, len(table))
    assert index.tolist() == [0, 1, -1, -1, 4, 3, 7, -1]
    rows, mean = TokenRows(index), [4.0, 5.0]
    expected = torch.tensor([[0.0, 1.0], [2.0, 3.0], mean, mean, [8.0, 9.0], [6.0, 7.0], mean, mean])
    for first in range(8):
        for end in range(first, 9):
            assert torch.equal(rows.take("t", table, first, end), expected[first:end])
    assert rows.take("t", table, 0, 2).data_ptr() == table.data_ptr()
    assert rows.take("t", table, 0, 8).is_contiguous()
