"""A merge's errors speak of models as the study does."""

from pathlib import Path

import pytest

from merging.errors import InputError
from operators.merge import named_models


def test_a_cached_folder_is_shown_as_the_model_it_holds():
    with (
        pytest.raises(InputError) as caught,
        named_models({"org/math@1": Path("/cache/models/ab"), "../base": Path("/cache/models/cd")}),
    ):
        raise InputError(["/cache/models/ab: tensor x holds NaN", "/cache/models/cd: and this"])
    assert caught.value.problems == ["org/math@1: tensor x holds NaN", "../base: and this"]
