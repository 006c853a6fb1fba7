"""Recipes: what is read, what is refused, and what a digest depends on."""

import subprocess
import sys

import pytest
import yaml

from merging.errors import InputError
from merging.recipe import Recipe

MODELS = {"base": "d0", "one": "d1", "two": "d2"}


def data(method="ties", **keys):
    models = [
        {"model": "one", "parameters": {"weight": 0.3, "density": 0.5}},
        {"model": "two", "parameters": {"weight": 0.7, "density": 0.5}},
    ]
    return {"merge_method": method, "base_model": "base", "models": models, **keys}


def problems(value) -> list[str]:
    with pytest.raises(InputError) as caught:
        Recipe.parse(value)
    return caught.value.problems


def test_every_problem_is_told_at_once():
    found = problems(
        data(
            basemodel="x",
            dtype="float31",
            parameters={"lamda": 1, "density": 1.5, "normalize": "yes"},
            aim={"omega": 2, "omga": 1},
            models=[{"model": "one", "parameters": {"wieght": 1, "lambda": 2}}],
        )
    )
    text = "\n".join(found)
    for expected in (
        "basemodel: unknown key; did you mean base_model?",
        "dtype:",
        "unknown parameter 'lamda' of ties; did you mean lambda?",
        "density must be a number from 0 to 1, found 1.5",
        "normalize must be true or false",
        "aim.omega:",
        "did you mean omega?",
        "did you mean weight?",
        "lambda is for the whole merge",
    ):
        assert expected in text
    assert all("\n" not in problem for problem in found)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (data(method="tise"), "did you mean ties?"),
        (data(method="zzz"), "valid: linear"),
        ({**data(), "base_model": None}, "base_model: ties works on deltas"),
        ({**data("linear"), "base_model": None, "models": [{"model": "a"}], "aim": {}}, "AIM relaxes towards a base"),
        (data(models=[]), "models"),
        (data(models=[{"model": "base"}]), "ties merges at least 1 beside the base, found 0"),
        (data(parameters={"density": True}), "density must be"),
        (data(parameters={"density": float("nan")}), "density must be"),
        (data(parameters={"trim": "layer"}), "one of tensor, model"),
        (data(random_seed=-1), "random_seed"),
        ([], "expected keys and values"),
        ({}, "merge_method: missing"),
    ],
)
def test_what_is_refused(value, expected):
    assert expected in "\n".join(problems(value))


def test_a_file_with_problems_is_named(tmp_path):
    (tmp_path / "r.yaml").write_text("merge_method: ties\n  models: [")
    with pytest.raises(InputError, match="r.yaml: not valid YAML"):
        Recipe.load(tmp_path / "r.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Recipe.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", ["2024-13-45", '!!int "x"', '!!int ""', '!!bool "x"', "!!timestamp x", "[" * 5000])
def test_a_value_that_yaml_cannot_read_is_one_line(tmp_path, value):
    (tmp_path / "r.yaml").write_text(f"merge_method: linear\nrandom_seed: {value}\n")
    with pytest.raises(InputError, match="r.yaml: not valid YAML: ") as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert "\n" not in str(caught.value)


MERGEKITS = """
models:
  - model: base
    # No parameters necessary for base model
  - model: one
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1e-1
  - model: two
    parameters:
merge_method: dare_ties
base_model: base
parameters:
  int8_mask: true
dtype: torch.bfloat16
slices:
"""


def test_mergekits_spellings(tmp_path):
    """Keys left empty, numbers without a point, torch's name before a dtype."""
    (tmp_path / "r.yaml").write_text(MERGEKITS)
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.dtype == "bfloat16"
    assert [entry.model for entry in recipe.experts] == ["one", "two"]
    assert recipe.settings(recipe.experts[0], t=0.25) == {"weight": 0.1, "density": pytest.approx(0.85)}
    assert recipe.settings(recipe.experts[1]) == {"weight": 1.0, "density": 1.0}


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_text("merge_method: linear\nmodels: [{model: a}]\nmerge_method: ties\n")
    with pytest.raises(InputError, match="r.yaml: not valid YAML: the key 'merge_method' stands twice"):
        Recipe.load(tmp_path / "r.yaml")


def test_yaml_round_trip():
    recipe = Recipe.parse(data(aim={"omega": 0.4}, random_seed=3, parameters={"lambda": 0.5}))
    again = Recipe.parse(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert recipe.inputs == ["base", "one", "two"]


def test_mergekits_habits_are_understood():
    """The base listed among the models, parameters for all models at the top, true and false for rescale."""
    recipe = Recipe.parse(
        data("dare_ties", models=[{"model": "base"}, {"model": "one"}], parameters={"weight": 0.5, "rescale": True})
    )
    assert [entry.model for entry in recipe.experts] == ["one"]
    assert recipe.settings(recipe.experts[0]) == {"weight": 0.5, "density": 1.0}
    assert recipe.shared()["rescale"] == "l1"


def test_digest_ignores_names_order_and_spelt_out_defaults():
    digest = Recipe.parse(data()).digest(MODELS, None)
    reordered = data(models=data()["models"][::-1], parameters={"lambda": 1, "normalize": True}, random_seed=9)
    assert Recipe.parse(reordered).digest(MODELS, None) == digest
    renamed = yaml.safe_load(yaml.safe_dump(data()).replace("one", "hub/one"))
    assert Recipe.parse(renamed).digest({**MODELS, "hub/one": "d1"}, "ignored without aim") == digest


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": {"lambda": 0.9}},
        {"parameters": {"trim": "model"}},
        {"merge_method": "dare_ties"},
        {"out_dtype": "float16"},
        {"dtype": "float64"},
        {"aim": {}},
        {"chat_template": "{{ x }}"},
    ],
)
def test_digest_changes_with_what_changes_bytes(change):
    assert Recipe.parse(data(**change)).digest(MODELS, "c") != Recipe.parse(data()).digest(MODELS, "c")


def test_digest_of_random_methods_depends_on_the_seed():
    first, second = (Recipe.parse(data("dare_ties", random_seed=seed)).digest(MODELS, None) for seed in (0, 1))
    assert first != second


def test_weights_travel_with_their_expert():
    swapped = data()
    swapped["models"][0]["model"], swapped["models"][1]["model"] = "two", "one"
    assert Recipe.parse(swapped).digest(MODELS, None) != Recipe.parse(data()).digest(MODELS, None)


def test_aim_depends_on_omega_and_calibration():
    recipe = Recipe.parse(data(aim={"omega": 0.4}))
    other = Recipe.parse(data(aim={"omega": 0.5}))
    assert len({recipe.digest(MODELS, "a"), recipe.digest(MODELS, "b"), other.digest(MODELS, "a")}) == 3


def test_parsing_a_recipe_imports_no_torch():
    code = (
        "import sys, merging.recipe, merging.methods, merging.digest, merging.errors;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
