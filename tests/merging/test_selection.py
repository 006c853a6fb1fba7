"""Cuts found without sorting equal those of a sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.methods import Group, selection
from merging.methods.definition import runs
from merging.methods.selection import Cut, largest


def passes(blocks):
    """A pass over blocks of one series of magnitudes."""

    def over(function, stride=1):
        parts = blocks if stride == 1 else [(start, runs(block, stride)) for start, block in blocks]
        return [function(Group("w", None, [block], {}, [], [], start=start)) for start, block in parts]

    return over


def in_blocks(values, size):
    return [(start, values[start : start + size]) for start in range(0, len(values), size)]


def expected(values, count):
    order = sorted(range(len(values)), key=lambda i: (-values[i].item(), i))
    kept = set(order[:count])
    return [v if i in kept else 0.0 for i, v in enumerate(values.tolist())]


def kept(values, count, size):
    blocks = in_blocks(values, size)
    (cut,) = largest(passes(blocks), lambda group: [group.experts[0]], [count], len(values))
    return [x for start, block in blocks for x in cut.keep(block, start).tolist()]


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 1e-30, 7.0]), min_size=1, max_size=40), st.data())
@settings(max_examples=200, deadline=None)
def test_exactly_the_largest_stay_the_first_of_equals(numbers, data):
    values = torch.tensor(numbers)
    count = data.draw(st.integers(0, len(numbers)))
    assert kept(values, count, data.draw(st.integers(1, 50))) == expected(values, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "rounded", "mostly zero", "constant", "sorted"])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_a_sample_only_guides_the_search(monkeypatch, dtype, kind, share):
    """With a small sample the brackets miss at times; the cut is exact all the same."""
    monkeypatch.setattr(selection, "SAMPLE", 64)
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=dtype).abs()
    values = {
        "normal": values,
        "rounded": values.bfloat16().to(dtype),
        "mostly zero": values * (values > 1.5),
        "constant": torch.ones_like(values),
        "sorted": values.sort().values,
    }[kind]
    count = int(share * len(values))
    assert kept(values, count, 700) == expected(values, count)


def test_a_cut_within_a_block_keeps_up_to_its_index():
    delta = torch.tensor([1.0, -1.0, 2.0, 1.0, -0.5])
    assert Cut(1.0, 11).keep(delta, 10).tolist() == [1.0, -1.0, 2.0, 0.0, 0.0]
    assert Cut(1.0, 9).keep(delta, 10).tolist() == [0.0, 0.0, 2.0, 0.0, 0.0]
    assert Cut(1.0).keep(delta, 10).tolist() == [1.0, -1.0, 2.0, 1.0, 0.0]
