"""Rows matched with tokens: whose tokens the output has, and which row each gets."""

import json

import pytest
import torch
import yaml

from merging.engine import merge, merge_many
from merging.preflight import preflight
from merging.recipe import Recipe
from merging.tensor_file import save_tensors
from merging.vocabulary.token_rows import mean_row
from merging.vocabulary.tokenizer import write_tokenizer
from tests.merging.vocabulary.models import (
    TABLES,
    WORDS,
    assert_by_token,
    by_token,
    files_of,
    ids_of,
    recipe,
    tensors_of,
    tokenizer,
)


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
