"""ACM's closed forms, its file, and the lambdas of a recipe."""

import json
import math

import pytest
import torch

from merging.acm import (
    Consensus,
    controlled,
    direction_warnings,
    lambdas,
    length_statistics,
    length_warnings,
    module_of,
)
from merging.errors import InputError
from merging.lambdas import coefficient_notes, digest_problems, read_lambdas
from merging.recipe import MERGED, Recipe
from merging.tensor_file import save_tensors

DOWN = "model.layers.0.mlp.down_proj"
MODULES = ["model.embed_tokens", DOWN, "model.layers.1.mlp.down_proj", "model.norm", "lm_head"]


def consensus(seed: int = 0, samples: int = 4, base="b", against="x", modules=MODULES) -> Consensus:
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.rand(samples, generator=generator, dtype=torch.float64) * 3 for name in modules}
    return Consensus(values, list(range(5, 5 + samples)), base, against)


def save(given: Consensus, path) -> None:
    save_tensors(path, given.information, given.about)


def recipe(method="task_arithmetic", **keys) -> Recipe:
    models = [{"model": "x"}, {"model": "y"}]
    return Recipe.parse({"merge_method": method, "base_model": "b", "models": models, "acm": {"t": 0.7}, **keys})


@pytest.mark.parametrize("t", [0.7, 3.0, -1.8])
def test_lambda_in_closed_form(t):
    values = [2.0, 0.5, 1.25]
    expected = 1 - sum(1 / (1 + math.exp(-t * (value - 2.0))) for value in values) / 3
    assert lambdas({"m": torch.tensor(values)}, t)["m"] == pytest.approx(expected, abs=1e-7)
    assert lambdas({"m": torch.tensor(values, dtype=torch.float64)}, t)["m"] == pytest.approx(expected, abs=1e-14)


def test_lambda_lies_on_ts_side_of_a_half():
    values = {"m": torch.rand(50, dtype=torch.float64) * 9}
    assert 0.5 <= lambdas(values, 0.7)["m"] < 1
    assert 0 < lambdas(values, -1.8)["m"] <= 0.5
    assert lambdas({"m": torch.full((7,), 3.0)}, 0.7)["m"] == 0.5


def test_uniform_is_the_mean_and_shuffled_the_same_lambdas_elsewhere():
    found = {f"m{i}": 0.5 + i / 100 for i in range(20)}
    assert controlled(found, None, 1) == found
    assert controlled(found, "uniform", 1) == dict.fromkeys(found, pytest.approx(0.595))
    shuffled = controlled(found, "shuffled", 1)
    assert shuffled != found
    assert sorted(shuffled.values()) == sorted(found.values())
    assert shuffled == controlled(dict(reversed(found.items())), "shuffled", 1)
    assert shuffled != controlled(found, "shuffled", 2)


def test_a_layers_tensors_share_a_module_and_the_others_have_their_own():
    expected = {
        "model.layers.0.self_attn.q_proj.weight": DOWN,
        "model.layers.0.self_attn.q_proj.bias": DOWN,
        "model.layers.0.input_layernorm.weight": DOWN,
        "model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.down_proj",
        "model.embed_tokens.weight": "model.embed_tokens",
        "model.norm.weight": "model.norm",
        "lm_head.weight": "lm_head",
        "lm_head.bias": "lm_head",
        "model.layers.2.mlp.up_proj.weight": None,
        "model.layers.10.mlp.up_proj.weight": None,
        "extra.weight": None,
    }
    assert {tensor: module_of(tensor, MODULES) for tensor in expected} == expected


def test_other_architectures_names():
    neox = ["gpt_neox.embed_in", "gpt_neox.layers.3.mlp.dense_4h_to_h", "gpt_neox.final_layer_norm", "embed_out"]
    assert module_of("gpt_neox.layers.3.attention.query_key_value.bias", neox) == neox[1]
    assert module_of("gpt_neox.final_layer_norm.bias", neox) == neox[2]
    assert module_of("model.layers.3.mlp.experts.7.down_proj.weight", ["model.layers.3.mlp"]) == "model.layers.3.mlp"


def test_warnings():
    assert direction_warnings(0.7) == length_warnings([4, 5]) == []
    [turned] = direction_warnings(-1.8)
    assert "t -1.8 is below 0, which turns the direction round" in turned
    [equal] = length_warnings([4, 4, 4])
    assert "all 3 samples have 4 tokens" in equal


def test_length_statistics():
    assert length_statistics([2, 4, 6]) == {
        "samples": 3,
        "shortest": 2,
        "mean": 4,
        "longest": 6,
        "standard deviation": pytest.approx(math.sqrt(8 / 3)),
    }


def test_a_file_gives_back_what_was_kept(tmp_path):
    given = consensus()
    save(given, tmp_path / "c")
    found = Consensus.load(tmp_path / "c")
    assert (found.lengths, found.base, found.against) == (given.lengths, "b", "x")
    assert all(torch.equal(found.information[name], values) for name, values in given.information.items())
    assert set(found.information) == set(given.information)


@pytest.mark.parametrize(
    ("metadata", "values", "expected"),
    [
        ({}, [1.0], "not the statistics ACM needs; make them with `mergeflow consensus`"),
        ({"kind": "mutual information", "base": "b", "against": "x"}, [1.0], "metadata is damaged"),
        ({"lengths": "[3, x]"}, [1.0], "metadata is damaged"),
        ({"lengths": "[3, 4]"}, [1.0], "m has no mutual information >= 0 for each of 2 samples"),
        ({"lengths": "[3]"}, [-1.0], "m has no mutual information >= 0 for each of 1 samples"),
        ({"lengths": "[3]"}, [math.nan], "m has no mutual information >= 0 for each of 1 samples"),
        ({"lengths": "[]"}, [], "holds no sample"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, metadata, values, expected):
    if "lengths" in metadata:
        metadata = {"kind": "mutual information", "base": "b", "against": "x", **metadata}
    save_tensors(tmp_path / "c", {"m": torch.tensor(values, dtype=torch.float64)}, metadata)
    with pytest.raises(InputError, match=expected):
        Consensus.load(tmp_path / "c")


def test_task_arithmetic_takes_a_lambda_by_expert(tmp_path):
    given = {name: consensus(seed, against=name) for seed, name in enumerate("xy")}
    for name, one in given.items():
        save(one, tmp_path / name)
    found, notes = read_lambdas(recipe(), {name: tmp_path / name for name in given}, ["lm_head.weight"])
    assert notes == []
    head = [lambdas(given[name].information, 0.7)["lm_head"] for name in "xy"]
    assert found.weights(["x", "y"], "lm_head.weight") == [head[0] / 2, head[1] / 2]
    assert found.of("y", "model.layers.0.mlp.up_proj.weight") == lambdas(given["y"].information, 0.7)[DOWN]
    assert found.lengths["samples"] == 4


def test_other_methods_take_a_lambda_for_the_merge(tmp_path):
    given = consensus()
    save(given, tmp_path / "c")
    one = recipe("ties", acm={"t": 0.7, "statistics": str(tmp_path / "c"), "control": "uniform"})
    found, _ = read_lambdas(one, None, ["model.norm.weight"])
    mean = sum(lambdas(given.information, 0.7).values()) / len(MODULES)
    assert found.factor("model.norm.weight") == pytest.approx(mean)
    assert one.measured == [MERGED]


def test_what_is_missing_is_told_at_once(tmp_path):
    save(consensus(modules=["lm_head"]), tmp_path / "x")
    with pytest.raises(InputError) as caught:
        read_lambdas(recipe(), {"x": tmp_path / "x"}, ["lm_head.weight", "model.layers.0.a.weight"])
    text = "\n".join(caught.value.problems)
    assert "no mutual information for model.layers.0.a.weight" in text
    assert "lm_head.weight" not in text
    assert "needs the mutual information of b and y; make it with `mergeflow consensus`" in text
    with pytest.raises(InputError, match="of b and the plain merge"):
        read_lambdas(recipe("ties"), None, ["lm_head.weight"])


def test_statistics_of_other_models_are_told(tmp_path):
    for name in "xy":
        save(consensus(against=name), tmp_path / name)
    found, _ = read_lambdas(recipe(), {name: tmp_path / name for name in "xy"}, [])
    assert digest_problems(recipe(), found, {"b": "b", "x": "x", "y": "y"}) == []
    told = digest_problems(recipe(), found, {"b": "c", "x": "x", "y": "z"})
    assert len(told) == 3
    assert "for y are of another model" in told[-1]


@pytest.mark.parametrize(
    ("method", "parameters", "own", "expected"),
    [
        ("task_arithmetic", {}, {}, []),
        ("task_arithmetic", {"lambda": 0.5}, {}, ["lambda 0.5 is not used"]),
        ("task_arithmetic", {}, {"weight": 0.3}, ["weight 0.3 is not used"]),
        ("ties", {"lambda": 0.5}, {}, ["already carries lambda 0.5"]),
        ("ties", {}, {"weight": 0.3}, []),
        ("dare_ties", {}, {"weight": 0.3}, ["already carries weight 0.3"]),
        ("dare_linear", {"lambda": [0.5, 1.0]}, {}, ["already carries lambda"]),
        ("karcher", {}, {}, []),
    ],
)
def test_a_coefficient_applied_twice_is_told(method, parameters, own, expected):
    models = [{"model": "x", "parameters": own}, {"model": "y", "parameters": own}]
    notes = coefficient_notes(recipe(method, parameters=parameters, models=models))
    assert len(notes) == len(expected)
    assert all(part in note for part, note in zip(expected, notes, strict=True))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"acm": {"t": 0}}, "acm.t: 0 makes lambda 0.5 everywhere"),
        ({"acm": {"t": math.inf}}, "acm.t"),
        ({"acm": {"control": "unifrom"}}, "acm.control"),
        ({"acm": {"omega": 1}}, "acm.omega: unknown key"),
        ({"acm": {"statistics": "f"}}, "acm.statistics: one file for 2 experts"),
        ({"acm": {"statistics": {"xx": "f"}}}, "'xx' is no expert of this recipe"),
        ({"acm": {"statistics": {"x": "f"}}, "merge_method": "ties"}, "ties takes one file"),
        ({"base_model": None, "merge_method": "linear"}, "base_model: ACM scales the change from a base"),
    ],
)
def test_what_a_recipe_may_not_say(keys, expected):
    with pytest.raises(InputError) as caught:
        recipe(**keys)
    assert expected in "\n".join(caught.value.problems)


def test_what_a_digest_depends_on():
    models, measured = {"b": "0", "x": "1", "y": "2"}, {"x": "3", "y": "4"}
    first = recipe().digest(models, consensus=measured)
    assert first == recipe(models=[{"model": "y"}, {"model": "x"}]).digest(models, consensus=measured)
    assert first == recipe(random_seed=5).digest(models, consensus=measured)
    different = [
        recipe(acm={"t": 0.8}).digest(models, consensus=measured),
        recipe(acm={"t": 0.7, "control": "uniform"}).digest(models, consensus=measured),
        recipe(acm={"t": 0.7, "control": "shuffled"}).digest(models, consensus=measured),
        recipe(acm={"t": 0.7, "control": "shuffled"}, random_seed=5).digest(models, consensus=measured),
        recipe().digest(models, consensus={"x": "4", "y": "3"}),
        recipe(acm=None).digest(models),
        recipe("ties").digest(models, consensus={MERGED: "3"}),
    ]
    assert len({first, *different}) == len(different) + 1


def test_yaml_keeps_the_settings():
    one = recipe(acm={"t": 0.7, "control": "shuffled"})
    assert "control: shuffled" in one.to_yaml()
    assert json.dumps(one.model_dump()["acm"]) == json.dumps({"t": 0.7, "control": "shuffled", "statistics": None})
