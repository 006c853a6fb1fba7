"""What a link in a model's folder may lead to."""

import pytest

from merging.digest import model_files
from merging.engine import merge
from merging.errors import InputError
from merging.links import stays_inside
from merging.recipe import Recipe

LINEAR = Recipe.parse({"merge_method": "linear", "models": [{"model": "base"}, {"model": "one"}]})


def test_a_link_within_the_folder_is_its_own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "real").write_text("x")
    (tmp_path / "model" / "link").symlink_to("real")
    (tmp_path / "alias").symlink_to("model")
    assert stays_inside(tmp_path / "model", tmp_path / "model" / "link")
    assert stays_inside(tmp_path / "alias", tmp_path / "alias" / "link")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "merges.txt", "chat_template.jinja"])
def test_a_link_to_a_secret_is_refused_before_it_is_read(family, tmp_path, name):
    (tmp_path / "secret").write_text("{{ secret }}")
    (family["base"] / name).unlink(missing_ok=True)
    (family["base"] / name).symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=f"{name}: is a link that leaves the folder") as caught:
        merge(LINEAR, tmp_path / "out", models=family)
    assert len(caught.value.problems) == 1
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("without_postflight")
def test_a_snapshot_in_the_hubs_cache_is_merged_as_it_lies(family, tmp_path):
    merge(LINEAR, tmp_path / "straight", models=family)
    blobs, snapshot = tmp_path / "models--org--x" / "blobs", tmp_path / "models--org--x" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in family["base"].iterdir():
        path.rename(blobs / f"blob-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob-{path.name}")
    merge(LINEAR, tmp_path / "out", models={**family, "base": snapshot})
    assert model_files(tmp_path / "out") == model_files(tmp_path / "straight")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
