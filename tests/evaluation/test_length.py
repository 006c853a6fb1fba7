"""The length change against the published long-to-short tables, which print tokens and percent to one decimal."""

import json
from pathlib import Path

import pytest

from evaluation.length import length_change
from merging.errors import InputError

ACM = json.loads((Path(__file__).parents[1] / "published" / "acm.json").read_text())
OFF = {("qwen2.5-7b", "DARE-TIES"): 0.1, ("qwen2.5-1.5b", "ACM-TIES"): 0.2, ("qwen2.5-1.5b", "TIES"): 2.0}
"""The printed cells that no rounding explains, with the distance (points) that they stay within."""


def cells():
    for size in ("qwen2.5-7b", "qwen2.5-1.5b"):
        reference = next(row for row in ACM[size] if row["model"] == ACM["length_reference"])
        for row in ACM[size]:
            if row["length_reduction_percent"] is not None:
                yield pytest.param(size, row, reference["tokens"], id=f"{size} {row['model']}")


@pytest.mark.parametrize(("size", "row", "reference"), cells())
def test_it_gives_the_published_reductions(size, row, reference):
    distance = abs(100 * length_change(row["tokens"], reference) - row["length_reduction_percent"])
    within = OFF.get((size, row["model"]), 0.055)
    assert distance <= within
    assert distance > 0.055 or (size, row["model"]) not in OFF


def test_every_benchmark_weighs_alike():
    assert length_change([50, 1000], [100, 1000]) == pytest.approx(-0.25)


def test_the_reference_itself_changes_nothing():
    assert length_change([3.5, 20], [3.5, 20]) == 0


def test_a_reference_without_a_length_is_refused():
    with pytest.raises(InputError, match=r"reference lengths must be above 0, found 0"):
        length_change([1, 2], [0, 5])
