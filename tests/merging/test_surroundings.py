"""What stands around the weights reaches the output, or a person is told."""

import pytest

from merging.engine import merge
from merging.errors import InputError
from merging.preflight import preflight
from merging.recipe import Recipe

FILES = {
    "generation_config.json": "{}",
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "chat_template.jinja": "{{ messages }}",
}


@pytest.fixture
def recipe(family):
    """A recipe over the family, whose base has all files."""
    for name, text in FILES.items():
        (family["base"] / name).write_text(text)
    return Recipe.parse({"merge_method": "ties", "base_model": "base", "models": [{"model": "one"}, {"model": "two"}]})


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_lost_on_the_way_is_refused(family, tmp_path, without_postflight, monkeypatch, recipe, name):
    import merging.engine as engine

    def lose(plan, recipe, folder, copy=engine.copy_surroundings):
        copy(plan, recipe, folder)
        (folder / name).unlink()

    merge(recipe, tmp_path / "whole", models=family)
    assert {file.name for file in (tmp_path / "whole").iterdir()} >= set(FILES)
    monkeypatch.setattr(engine, "copy_surroundings", lose)
    with pytest.raises(InputError, match=name):
        merge(recipe, tmp_path / "out", models=family)
    assert not (tmp_path / "out").exists()


def test_one_note_tells_what_none_of_the_inputs_has(family, recipe):
    assert preflight(recipe, family).notes == []
    for name in ("generation_config.json", "chat_template.jinja"):
        (family["base"] / name).unlink()
    (note,) = preflight(recipe, family).notes
    assert note.startswith("none of the inputs has a generation_config.json or a chat template;")
    (family["two"] / "generation_config.json").write_text("{}")
    (note,) = preflight(recipe, family).notes
    assert "generation_config" not in note
