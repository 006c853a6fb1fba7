"""Merges with ACM, end to end, against the formula worked out tensor by tensor."""

import pytest
import torch

from merging.acm import Consensus, controlled, lambdas, module_of
from merging.digest import model_digest, model_files
from merging.engine import merge, merge_many
from merging.errors import InputError
from merging.recipe import MERGED, Recipe
from merging.tensor_file import load_tensors, save_tensors

MODULES = ["model.embed_tokens", "model.layers.0.mlp.down_proj", "model.norm", "lm_head"]


def recipe(method="task_arithmetic", **keys) -> Recipe:
    models = [{"model": "one"}, {"model": "two"}]
    return Recipe.parse({"merge_method": method, "base_model": "base", "models": models, "dtype": "float32", **keys})


def weights(folder) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "model.safetensors")[0]


@pytest.fixture
def measure(family, tmp_path):
    """`measure(name, seed)` makes up the statistics of a model of the family; the file and its lambdas at t 0.7."""

    def make(name: str, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        values = {module: torch.rand(6, generator=generator, dtype=torch.float64) * 4 for module in MODULES}
        digests = {one: model_digest(model_files(family[one])) for one in family}
        path = tmp_path / f"{name}.consensus"
        given = Consensus(values, list(range(6, 12)), digests["base"], digests.get(name, "any"))
        save_tensors(path, given.information, given.about)
        return path, lambdas(values, 0.7)

    return make


def scaled(base, merged, found):
    """`b + lambda (merged - b)`, each tensor with the lambda of its module."""
    return {
        name: base[name].double() + found[module_of(name, found)] * (merged[name].double() - base[name].double())
        for name in base
    }


def assert_near(found, expected, tolerance=1e-6):
    assert set(found) == set(expected)
    assert max((found[name].double() - expected[name]).abs().max().item() for name in expected) <= tolerance


@pytest.mark.parametrize("control", [None, "uniform", "shuffled"])
def test_task_arithmetic_scales_each_experts_delta(family, tmp_path, without_postflight, measure, control):
    files, found = {}, {}
    for seed, name in enumerate(["one", "two"]):
        files[name], found[name] = measure(name, seed)
    one = recipe(acm={"t": 0.7, "control": control}, random_seed=3, parameters={"lambda": 0.5})
    report = merge(one, tmp_path / "out", models=family, consensus=files)
    base = weights(family["base"])
    expected = {name: tensor.double() for name, tensor in base.items()}
    for expert, own in found.items():
        own = controlled(own, control, 3)
        assert report["lambdas"][expert] == own
        for name, tensor in weights(family[expert]).items():
            expected[name] = expected[name] + own[module_of(name, own)] / 2 * (tensor.double() - base[name].double())
    assert_near(weights(tmp_path / "out"), expected)
    assert report["lengths"]["longest"] == 11
    assert any("lambda 0.5 is not used" in note for note in report["notes"])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", ["ties", "dare_linear", "linear", "karcher"])
def test_other_methods_merge_first(family, tmp_path, without_postflight, monkeypatch, measure, method, fused):
    monkeypatch.setattr("merging.stream.SMALL", 0 if fused else 1 << 40)
    parameters = {"ties": {"density": 0.4}, "dare_linear": {"density": 0.5}}.get(method, {})
    path, found = measure("merged")
    settings = {"parameters": parameters, "random_seed": 1}
    recipes = [recipe(method, **settings), recipe(method, **settings, acm={"t": 0.7})]
    outs = [tmp_path / "plain", tmp_path / "acm"]
    merge_many(recipes, outs, models=family, consensus=[None, {MERGED: path}])
    base = weights(family["base"])
    assert_near(weights(outs[1]), scaled(base, weights(outs[0]), found))
    alone = tmp_path / "alone"
    named = recipe(method, **settings, acm={"t": 0.7, "statistics": str(path)})
    merge(named, alone, models=family)
    assert (alone / "model.safetensors").read_bytes() == (outs[1] / "model.safetensors").read_bytes()


def test_task_arithmetic_of_one_merged_model_is_acm_of_that_merge(family, tmp_path, without_postflight, measure):
    """So ACM reaches any checkpoint, made elsewhere included."""
    path, found = measure("one")
    alone = Recipe.parse(
        {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "one"}], "acm": {}}
    )
    merge(alone, tmp_path / "out", models=family, consensus={"one": path})
    base = weights(family["base"])
    assert_near(weights(tmp_path / "out"), scaled(base, weights(family["one"]), found))


def test_aim_and_acm_multiply(family, tmp_path, without_postflight, measure):
    path, found = measure("merged")
    base = weights(family["base"])
    statistics = {n.removesuffix(".weight"): torch.rand(t.shape[-1]) for n, t in base.items() if "embed" not in n}
    save_tensors(tmp_path / "s", statistics)
    both = [recipe("ties"), recipe("ties", aim={"omega": 0.4}), recipe("ties", aim={"omega": 0.4}, acm={})]
    outs = [tmp_path / str(i) for i in range(3)]
    merge_many(both, outs, models=family, statistics=tmp_path / "s", consensus=[None, None, {MERGED: path}])
    assert_near(weights(outs[2]), scaled(base, weights(outs[1]), found))
    assert not torch.equal(weights(outs[0])["lm_head.weight"], weights(outs[1])["lm_head.weight"])


def test_statistics_of_another_model_are_refused(family, tmp_path, measure):
    files = {"one": measure("one")[0], "two": measure("one")[0]}
    with pytest.raises(InputError, match="acm: the statistics for two are of another model"):
        merge(recipe(acm={}), tmp_path / "out", models=family, consensus=files)
    assert not (tmp_path / "out").exists()


def test_the_card_shows_settings_lambdas_and_files(family, tmp_path, without_postflight, measure):
    files = {name: measure(name, seed) for seed, name in enumerate(["one", "two"])}
    given = {name: path for name, (path, _) in files.items()}
    merge(recipe(acm={"t": 0.7, "control": "shuffled"}), tmp_path / "out", models=family, consensus=given)
    card = (tmp_path / "out" / "README.md").read_text()
    shuffled = [controlled(found, "shuffled", 0)["lm_head"] for _, found in files.values()]
    assert f"| lm_head | {shuffled[0]:.4f} | {shuffled[1]:.4f} |" in card
    assert "| ACM | t 0.7, control shuffled (arXiv 2505.14009) |" in card
    assert "samples 6, shortest 6, mean 8.5, longest 11" in card
    assert "one: consensus-1.safetensors" in card
    assert "scaled with ACM at t 0.7" in card
