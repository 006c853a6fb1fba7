"""One reading for several merges, in blocks, by any number of threads."""

import pytest
import torch

from merging.engine import merge, merge_many
from merging.errors import InputError
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.stream import row_blocks
from merging.tensor_file import load_tensors, save_tensors


def recipe(method="ties", **keys):
    entries = [{"model": "one"}, {"model": "two"}]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": entries, **keys})


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def statistics(family, tmp_path):
    tensors, _ = load_tensors(family["base"] / "model.safetensors")
    vectors = {name.removesuffix(".weight"): torch.rand(t.shape[-1]) for name, t in tensors.items()}
    save_tensors(tmp_path / "statistics.safetensors", vectors)
    return tmp_path / "statistics.safetensors"


def test_blocks_are_whole_rows_and_cover_a_tensor():
    assert row_blocks((5, 4), 12) == [(0, 3), (3, 5)]
    assert row_blocks((2, 50), 12) == [(0, 1), (1, 2)]
    assert row_blocks((100,), 12) == [(0, 100)]
    assert row_blocks((), 12) == [(0, 1)]
    assert row_blocks((0, 4), 12) == [(0, 0)]
    assert row_blocks((4, 2, 3), 12) == [(0, 2), (2, 4)]


@pytest.mark.usefixtures("without_postflight")
@pytest.mark.parametrize("method", METHODS)
def test_small_blocks_make_what_whole_tensors_make(family, tmp_path, monkeypatch, method):
    known = METHODS[method].parameters
    names = ["one", "two"][: METHODS[method].experts[1]]
    data = {"merge_method": method, "base_model": "base", "models": [{"model": name} for name in names]}
    data["parameters"] = {"density": 0.4} if "density" in known else {}
    merge(Recipe.parse(data), tmp_path / "whole", models=family)
    monkeypatch.setattr("merging.stream.BLOCK", 24)
    monkeypatch.setattr("merging.methods.selection.SAMPLE", 16)
    merge(Recipe.parse(data), tmp_path / "blocks", models=family)
    whole, blocks = (load_tensors(tmp_path / name / "model.safetensors")[0] for name in ("whole", "blocks"))
    for name in whole:
        torch.testing.assert_close(blocks[name], whole[name], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("without_postflight")
def test_many_recipes_in_one_reading_equal_one_by_one(family, tmp_path, statistics):
    recipes = {
        "ties": recipe("ties", parameters={"density": 0.5}),
        "aim 0.2": recipe("ties", parameters={"density": 0.5}, aim={"omega": 0.2}),
        "aim 0.6": recipe("ties", parameters={"density": 0.5}, aim={"omega": 0.6}, out_dtype="bfloat16"),
        "model": recipe("ties", parameters={"density": 0.5, "trim": "model"}),
        "dare": recipe("dare_linear", parameters={"density": 0.5}),
        "pair": recipe("linear", models=[{"model": "one"}]),
        "double": recipe("widen", dtype="float64"),
    }
    outs = {name: tmp_path / "many" / name for name in recipes}
    found = merge_many(
        list(recipes.values()),
        list(outs.values()),
        models=family,
        statistics=statistics,
        metadata=[{"candidate": name} for name in recipes],
    )
    for result, (name, one) in zip(found, recipes.items(), strict=True):
        alone = merge(one, tmp_path / "one" / name, models=family, statistics=statistics if one.aim else None)
        assert weights(outs[name]) == weights(tmp_path / "one" / name), name
        assert f"| candidate | {name} |" in (outs[name] / "README.md").read_text()
        assert result["delta_norms"].keys() >= alone["delta_norms"].keys()


@pytest.mark.usefixtures("without_postflight")
def test_problems_of_all_recipes_are_told_and_nothing_is_left(family, tmp_path):
    with pytest.raises(InputError) as caught:
        merge_many([recipe(aim={}), recipe(tokenizer_source="union")], [tmp_path / "a", tmp_path / "b"], models=family)
    assert any("needs activation statistics" in problem for problem in caught.value.problems)
    assert any("no tokenizer.json" in problem for problem in caught.value.problems)
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("without_postflight")
def test_integers_are_those_of_each_recipes_own_models(make_model, tmp_path):
    def numbered(number):
        return lambda tensors: tensors.update({"model.layers.0.counts": torch.tensor([number])})

    family = {name: make_model(name, number, numbered(number)) for number, name in enumerate(["one", "two"])}
    recipes = [
        Recipe.parse({"merge_method": "linear", "models": [{"model": "one"}, *more]})
        for more in ([], [{"model": "two"}])
    ]
    alone = merge(recipes[0], tmp_path / "alone", models=family)
    assert load_tensors(tmp_path / "alone" / "model.safetensors")[0]["model.layers.0.counts"].tolist() == [0]
    assert alone["tensors"] == len(load_tensors(family["one"] / "model.safetensors")[0])
    with pytest.raises(InputError, match="two: integer tensor model.layers.0.counts differs from one's"):
        merge_many(recipes, [tmp_path / "a", tmp_path / "b"], models=family)
