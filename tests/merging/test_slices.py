"""Layers stacked in slices, and parameters that vary by layer and by tensor name."""

import json

import pytest
import torch

from merging.engine import merge
from merging.errors import InputError
from merging.methods import METHODS
from merging.recipe import Recipe
from merging.settings import evaluate, problems
from merging.tensor_file import load_tensors

WEIGHT, TRIM = METHODS["linear"].parameters["weight"], METHODS["ties"].parameters["trim"]


# --- settings


@pytest.mark.parametrize(
    ("setting", "tensor", "t", "expected"),
    [
        (0.5, "x", 0.3, 0.5),
        ([0, 1], "x", 0.25, 0.25),
        ([0, 1, 0], "x", 0.75, 0.5),
        ([0, 1, 0], "x", 1.0, 0.0),
        ([0.3], "x", 1.0, 0.3),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 0.7}], "layers.0.mlp.up", 0.5, 0.5),
        ([{"filter": "mlp", "value": [0, 1]}, {"value": 0.7}], "layers.0.attn", 0.5, 0.7),
        ([{"filter": "*", "value": 0.2}], "x", 0.0, 0.2),
        ({"filter": "mlp", "value": 1}, "attn", 0.0, None),
    ],
)
def test_settings_by_name_and_depth(setting, tensor, t, expected):
    assert problems(WEIGHT, setting) == []
    assert evaluate(WEIGHT, setting, tensor, t) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ([], "empty list"),
        ([0.5, "x"], "weight must be a number"),
        ([[1, 2], [3]], "a gradient is a list of values"),
        ([{"filter": "mlp"}], "expected {filter, value}"),
        ([{"filter": 3, "value": 1}], "a filter is a part of a tensor's name"),
        ([{"value": "x"}], "weight must be a number"),
        ([{"value": [{"value": 1}]}], "cannot be nested"),
        ([0.5, {"value": 1}], "expected {filter, value}"),
    ],
)
def test_malformed_settings_are_told(setting, expected):
    assert expected in problems(WEIGHT, setting)[0]


# --- merges


def deepen(tensors, layers, seed):
    """Give a tiny model this many layers, each with weights of its own."""
    generator = torch.Generator().manual_seed(100 + seed)
    for name in [n for n in tensors if ".layers.0." in n]:
        for layer in range(layers):
            tensors[name.replace(".0.", f".{layer}.")] = torch.randn(tensors[name].shape, generator=generator) * 0.1


@pytest.fixture
def deep(make_model):
    """Folders of a base and two experts of three layers, by name."""
    return {
        name: make_model(name, seed, lambda t, seed=seed: deepen(t, 3, seed), num_hidden_layers=3)
        for seed, name in enumerate(["base", "one", "two"])
    }


def tensors(folder):
    return load_tensors(folder / "model.safetensors")[0]


def merged(data, folders, out):
    merge(Recipe.parse(data), out, models=folders)
    return tensors(out)


@pytest.mark.usefixtures("without_postflight")
def test_a_gradient_runs_over_the_layers_and_a_filter_picks_tensors(deep, tmp_path):
    weight = [{"filter": "mlp", "value": [0.0, 1.0]}, {"filter": "norm", "value": 0.25}, {"value": 0.5}]
    data = {"merge_method": "task_arithmetic", "base_model": "base"}
    data["models"] = [{"model": "one", "parameters": {"weight": weight}}]
    found = merged(data, deep, tmp_path / "out")
    base, one = tensors(deep["base"]), tensors(deep["one"])
    for name, tensor in found.items():
        share = 0.25 if "norm" in name else 0.5
        share = int(name.split(".")[2]) / 2 if ".mlp." in name else share
        torch.testing.assert_close(tensor, base[name] + share * (one[name] - base[name]))


@pytest.mark.usefixtures("without_postflight")
def test_a_merge_wide_gradient_applies_where_a_model_has_none_of_its_own(deep, tmp_path):
    data = {"merge_method": "slerp", "base_model": "base", "models": [{"model": "one"}]}
    found = merged(
        data | {"parameters": {"t": [{"filter": "self_attn", "value": [0, 1]}, {"value": 0}]}}, deep, tmp_path / "o"
    )
    base, one = tensors(deep["base"]), tensors(deep["one"])
    for name, tensor in found.items():
        whole = name.startswith("model.layers.2.self_attn")
        if whole or "layers.1.self_attn" not in name:
            torch.testing.assert_close(tensor, one[name] if whole else base[name])


def stack(*slices, method="passthrough", **keys):
    """`stack([("one", 0, 2)], ...)`: a recipe of slices, each a list of sources."""
    return {
        "merge_method": method,
        "slices": [
            {"sources": [{"model": m, "layer_range": [first, end]} for m, first, end in sources]} for sources in slices
        ],
        **keys,
    }


@pytest.mark.usefixtures("without_postflight")
def test_layers_are_stacked_and_the_rest_comes_from_the_ends(deep, tmp_path):
    found = merged(stack([("one", 0, 2)], [("two", 0, 3)]), deep, tmp_path / "out")
    one, two = tensors(deep["one"]), tensors(deep["two"])
    assert torch.equal(found["model.embed_tokens.weight"], one["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], two["model.norm.weight"])
    assert torch.equal(found["lm_head.weight"], two["lm_head.weight"])
    for layer, (model, source) in enumerate([(one, 0), (one, 1), (two, 0), (two, 1), (two, 2)]):
        for part in ("mlp.up_proj", "input_layernorm"):
            expected = model[f"model.layers.{source}.{part}.weight"]
            assert torch.equal(found[f"model.layers.{layer}.{part}.weight"], expected)
    assert len(found) == 3 + 5 * 9
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 5


@pytest.mark.usefixtures("without_postflight")
def test_slices_merge_layers_of_different_depth(deep, tmp_path):
    data = stack(
        [("base", 1, 3), ("one", 0, 2)], method="task_arithmetic", base_model="base", parameters={"weight": 0.5}
    )
    found = merged(data, deep, tmp_path / "out")
    base, one = tensors(deep["base"]), tensors(deep["one"])
    for layer in (0, 1):
        b, x = (m[f"model.layers.{i}.mlp.up_proj.weight"] for m, i in ((base, layer + 1), (one, layer)))
        torch.testing.assert_close(found[f"model.layers.{layer}.mlp.up_proj.weight"], (b + x) / 2)


@pytest.mark.usefixtures("without_postflight")
def test_one_slice_of_everything_is_the_plain_merge(deep, tmp_path):
    whole = stack(
        [("base", 0, 3), ("one", 0, 3), ("two", 0, 3)], method="ties", base_model="base", parameters={"density": 0.5}
    )
    plain = {"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}, {"model": "two"}]}
    merged(whole, deep, tmp_path / "slices")
    merged(plain | {"parameters": {"density": 0.5}}, deep, tmp_path / "plain")
    assert (tmp_path / "slices" / "model.safetensors").read_bytes() == (
        tmp_path / "plain" / "model.safetensors"
    ).read_bytes()


def test_a_stack_loads_and_generates(oracle, tmp_path):
    case = oracle("qwen2_tied_bf16")
    recipe = Recipe.parse(stack([("ft_code", 0, 2)], [("ft_math", 0, 2)]))
    merge(recipe, tmp_path / "out", models={name: case.model(name) for name in recipe.inputs})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (stack([("one", 0, 2), ("two", 0, 3)], method="linear"), "different numbers of layers"),
        (stack([("one", 2, 2)]), "layer_range is [first, end]"),
        (stack([("one", 0, 1), ("two", 0, 1)]), "slices[0].sources: passthrough merges 1, found 2"),
        (stack([("one", 0, 1)], models=[{"model": "one"}]), "keep one"),
        (stack([("one", 0, 1)], method="ties", base_model="base"), "list the base base once"),
        (
            stack([("base", 0, 1), ("one", 0, 1)], method="ties", base_model="base", aim={}),
            "cannot be used with slices",
        ),
        (
            {"merge_method": "linear", "slices": [{"sources": [{"model": "a", "layer_rang": [0, 1]}]}]},
            "did you mean layer_range?",
        ),
    ],
)
def test_malformed_slices_are_told(data, expected):
    with pytest.raises(InputError) as caught:
        Recipe.parse(data)
    assert expected in str(caught.value)


def test_layers_that_are_not_there_are_named(deep, tmp_path):
    with pytest.raises(InputError, match=r"tensor model.layers.3.input_layernorm.weight is missing"):
        merge(Recipe.parse(stack([("one", 2, 4)])), tmp_path / "out", models=deep)


def test_what_varies_within_a_model_does_not_go_with_trimming_over_it():
    entries = [{"model": "one", "parameters": {"density": [0.1, 0.9]}}]
    data = {"merge_method": "ties", "base_model": "base", "models": entries, "parameters": {"trim": "model"}}
    with pytest.raises(InputError, match="density is one for the whole model"):
        Recipe.parse(data)


def test_digests_follow_slices_and_gradients():
    digests = {name: name for name in ("base", "one", "two")}

    def digest(data):
        return Recipe.parse(data).digest(digests, None)

    pair = [("base", 0, 2), ("one", 0, 2)]
    keys = {"method": "task_arithmetic", "base_model": "base"}
    distinct = [
        stack(pair, **keys),
        stack([("base", 0, 2), ("one", 1, 3)], **keys),
        stack([("base", 1, 3), ("one", 0, 2)], **keys),
        stack(pair, pair, **keys),
        stack(pair, parameters={"weight": [0, 1]}, **keys),
        stack(pair, parameters={"weight": {"filter": "mlp", "value": 0.5}}, **keys),
    ]
    assert len({digest(data) for data in distinct}) == len(distinct)
    assert digest(stack(pair[::-1], **keys)) == digest(stack(pair, **keys))
