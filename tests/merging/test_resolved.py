"""Parameters that fit one by one but not together are refused before a weight is read, as each tensor has them."""

import pytest

from merging.engine import merge_many
from merging.errors import InputError
from merging.preflight import preflight
from merging.recipe import Recipe


def recipe(method, *own, base="base", **shared):
    models = [{"model": name, "parameters": given} for name, given in zip(("one", "two"), own, strict=True)]
    return Recipe.parse({"merge_method": method, "base_model": base, "models": models, "parameters": shared})


def problems(models, one) -> list[str]:
    with pytest.raises(InputError) as caught:
        preflight(one, models)
    return caught.value.problems


CANCEL = {"weight": 1}, {"weight": -1}
GRADIENT = {"weight": 1}, {"weight": [{"filter": "mlp", "value": -1}, {"value": 1}]}


@pytest.mark.parametrize("method", ["linear", "multislerp"])
def test_weights_that_sum_to_0_are_refused_where_they_divide(family, method):
    switch = "normalize" if method == "linear" else "normalize_weights"
    (line,) = problems(family, recipe(method, *CANCEL, base=None))
    assert "the weights sum to 0 (1, -1)" in line
    assert switch in line
    (line,) = problems(family, recipe(method, *GRADIENT, base=None))
    assert ".mlp." in line
    (line,) = problems(family, recipe(method, {"weight": 0.1 + 0.2}, {"weight": -0.3}, base=None))
    assert "sum to 0" in line
    (line,) = problems(family, recipe(method, {}, {}, base=None, weight=1e-50))
    assert "sum to 0" in line
    preflight(recipe(method, *CANCEL, base=None, **{switch: False}), family)
    preflight(recipe(method, {"weight": 1}, {"weight": -0.5}, base=None), family)


def test_a_bad_recipe_is_told_before_the_good_ones_are_read(family, tmp_path):
    with pytest.raises(InputError, match="the weights sum to 0"):
        merge_many(
            [recipe("linear", {}, {}), recipe("multislerp", *CANCEL)], [tmp_path / "a", tmp_path / "b"], models=family
        )
    assert not list(tmp_path.glob("[ab]"))


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_a_density_too_small_to_keep_anything(family, method):
    (line,) = problems(family, recipe(method, {}, {"density": 1e-50}))
    assert "density 1e-50 keeps nothing" in line
    preflight(recipe(method, {}, {"density": 0}), family)


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_density_and_epsilon_are_looked_at_together(family, method):
    near = {"epsilon": 0.05}
    preflight(recipe(method, near, near, density=0.9), family)
    far = {"epsilon": 0.5}
    (line,) = problems(family, recipe(method, far, far, density=0.5, rescale="density"))
    assert "found 0.5 and 0.5" in line
    first, last = problems(family, recipe(method, {}, {}, density=[0.1, 0.9]))
    assert "found 0.1 and 0.15" in first
    assert "found 0.9 and 0.15" in last
    assert "model.layers.0." in last
    (line,) = problems(family, recipe(method, {}, {}, density=1e-50, epsilon=0))
    assert "between 0 and 1" in line
