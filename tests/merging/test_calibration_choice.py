"""What a recipe says to calibrate on: one source, and nothing of it in the recipe's digest."""

import pytest
import yaml

from merging.errors import InputError
from merging.recipe import Recipe

BASE = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "one"}], "aim": {"omega": 0.4}}


def test_each_source_is_taken_with_the_published_settings():
    for source in ("texts", "dataset", "token_blocks"):
        choice = Recipe.parse({**BASE, "calibration": {source: "x"}}).calibration
        assert (getattr(choice, source), choice.samples, choice.block) == ("x", 256, 512)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "calibration: name one of `texts` .* found none"),
        ({"texts": "a", "dataset": "b"}, "found texts, dataset"),
        ({"token_blocks": "a", "block": 64}, "block: token_blocks are taken as they are"),
        ({"texts": "a", "samples": 0}, "calibration.samples: .*found 0"),
        ({"text": "a"}, "calibration.text: unknown key; did you mean texts"),
    ],
)
def test_other_choices_are_refused(given, says):
    with pytest.raises(InputError, match=says):
        Recipe.parse({**BASE, "calibration": given})


def test_the_digest_takes_the_calibration_s_not_its_place():
    plain, chosen = Recipe.parse(BASE), Recipe.parse({**BASE, "calibration": {"texts": "somewhere.jsonl"}})
    models = {"base": "d0", "one": "d1"}
    assert chosen.digest(models, "c") == plain.digest(models, "c") != chosen.digest(models, "other")
    assert Recipe.parse(yaml.safe_load(chosen.to_yaml())) == chosen
