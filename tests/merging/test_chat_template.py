"""Whose chat template a merge has, decided before a weight is read."""

import itertools
import json
import re

import pytest
import yaml

from merging.engine import merge
from merging.errors import InputError
from merging.recipe import Recipe


def recipe(template, experts=("one", "two")):
    models = [{"model": name} for name in experts]
    return Recipe.parse(
        {"merge_method": "task_arithmetic", "base_model": "base", "models": models, "chat_template": template}
    )


@pytest.fixture
def merged(family, tmp_path, without_postflight):
    """`merged(recipe)` gives the folder made."""
    count = itertools.count()

    def make(recipe):
        out = tmp_path / f"out{next(count)}"
        merge(recipe, out, models=family)
        return out

    return make


def give(folder, template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "x"}))


def test_a_template_of_the_recipes_own_replaces_the_bases(family, merged):
    give(family["base"], "old")
    out = merged(recipe("{{ messages }}"))
    assert (out / "chat_template.jinja").read_text() == "{{ messages }}"
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"eos_token": "x"}


def test_auto_takes_the_one_that_most_have(family, merged):
    give(family["base"], "old")
    give(family["one"], "new")
    (family["two"] / "chat_template.jinja").write_text("new")
    assert (merged(recipe("auto")) / "chat_template.jinja").read_text() == "new"


@pytest.mark.parametrize(("templates", "expected"), [(("c", "b", "a"), "c"), ((None, "b", "a"), "a")])
def test_auto_depends_on_no_order_of_experts(family, merged, templates, expected):
    for name, template in zip(("base", "one", "two"), templates, strict=True):
        if template:
            give(family[name], template)
    for experts in (("one", "two"), ("two", "one")):
        assert (merged(recipe("auto", experts)) / "chat_template.jinja").read_text() == expected


@pytest.mark.parametrize(
    ("template", "says"), [("chatml", "expected auto or the text of a Jinja template"), ("auto", "none of the models")]
)
def test_what_gives_no_template_is_refused_at_once(family, tmp_path, template, says, monkeypatch):
    monkeypatch.setattr("merging.engine.write_weights", None)
    with pytest.raises(InputError, match=f"^chat_template: .*{says}"):
        merge(recipe(template), tmp_path / "out", models=family)
    assert not list(tmp_path.glob("out*"))


def test_a_template_with_backticks_stays_inside_the_cards_block(merged):
    wanted = recipe("{{ x }}\n```\n## no heading\n````yaml\n")
    card = (merged(wanted) / "README.md").read_text()
    block = re.search(r"^(`{3,})yaml\n(.*?)^\1$", card, re.DOTALL | re.MULTILINE)
    assert Recipe.parse(yaml.safe_load(block[2])) == wanted
