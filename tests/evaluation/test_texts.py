"""Calibration texts from a data set: shuffled as published, and clear about what is not there."""

import json

import pytest

from evaluation.texts import dataset_texts
from merging.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / "set"
    path.mkdir()
    rows = [{"text": f"text {number}", "id": number} for number in range(50)]
    (path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_order_is_shuffled_and_the_same_every_time(folder):
    first = list(dataset_texts(folder, None, "validation", "text"))
    assert first == list(dataset_texts(folder, None, "validation", "text"))
    assert sorted(first) == sorted(f"text {number}" for number in range(50))
    assert first != [f"text {number}" for number in range(50)]


def test_the_shuffle_is_that_of_datasets_with_seed_42(folder):
    import numpy as np

    order = np.random.default_rng(42).permutation(50)
    assert list(dataset_texts(folder, None, "validation", "text")) == [f"text {number}" for number in order]


@pytest.mark.parametrize(
    ("split", "field", "says"), [("nosplit", "text", "nosplit"), ("validation", "body", "id, text")]
)
def test_a_wrong_split_or_field_is_named(folder, split, field, says):
    with pytest.raises(InputError) as caught:
        dataset_texts(folder, None, split, field)
    assert len(str(caught.value).splitlines()) == 1
    assert all(word in str(caught.value) for word in says.split(", "))
