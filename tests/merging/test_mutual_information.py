"""Mutual information against scikit-learn's, which takes every distinct value as a category too."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mutual_info_score

from merging import mutual_information as module
from merging.kernels import mutual_information as kernels
from merging.mutual_information import NotANumber, PairCounts, mutual_information

FLOATS_ARE_CATEGORIES = pytest.mark.filterwarnings(
    "ignore:Clustering metrics expects", "ignore:The number of unique classes", "ignore:invalid value"
)


def pair(n: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator)
    return a.bfloat16(), (a + noise * torch.randn(n, generator=generator)).bfloat16()


def theirs(a: torch.Tensor, b: torch.Tensor) -> float:
    return mutual_info_score(a.float().flatten().numpy(), b.float().flatten().numpy())


@FLOATS_ARE_CATEGORIES
@pytest.mark.parametrize("noise", [0.0, 0.01, 1.0, 100.0])
@pytest.mark.parametrize("n", [1, 2, 1000, 300_000])
def test_equals_scikit_learn(n, noise):
    a, b = pair(n, noise)
    assert abs(mutual_information(a, b) - theirs(a, b)) <= 1e-9


@FLOATS_ARE_CATEGORIES
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.sampled_from([-1e38, -3.0, -1e-40, -0.0, 0.0, 1e-40, 0.5, 2.0, 3e38])] * 2), min_size=1))
def test_equals_scikit_learn_on_zeros_and_extremes(values):
    a, b = (torch.tensor(column, dtype=torch.bfloat16) for column in zip(*values, strict=True))
    assert abs(mutual_information(a, b) - theirs(a, b)) <= 1e-9


def test_closed_forms():
    four = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert mutual_information(four, -four) == pytest.approx(math.log(4), abs=1e-12)
    assert mutual_information(four, torch.ones(4)) == 0
    halves, others = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.0, 1, 0, 1])
    assert mutual_information(halves, others) == pytest.approx(0, abs=1e-12)
    assert mutual_information(torch.empty(0), torch.empty(0)) == 0
    infinite = torch.tensor([math.inf, -math.inf, 1.0])
    assert mutual_information(infinite, infinite) == pytest.approx(math.log(3), abs=1e-12)


def test_other_dtypes_are_rounded_to_bfloat16():
    a, b = torch.tensor([1.0, 1.0001, 2.0]), torch.tensor([3.0, 4.0, 5.0])
    assert mutual_information(a, b) == mutual_information(a.bfloat16(), b.bfloat16())


def test_shapes_and_layout_change_nothing():
    a, b = pair(600, 0.5)
    whole = mutual_information(a, b)
    assert mutual_information(a.view(20, 30), b.view(20, 30)) == whole
    assert mutual_information(a.view(20, 30).T, b.view(20, 30).T) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("piece", [1, 7, 64, 10_000])
def test_pieces_add_up(monkeypatch, piece):
    a, b = pair(1000, 0.5)
    whole = mutual_information(a, b)
    monkeypatch.setattr(module, "PIECE", piece)
    counted = PairCounts()
    counted.add(a[:300], b[:300])
    counted.add(a[300:], b[300:])
    assert counted.information() == whole


@pytest.mark.parametrize("piece", [64, 1 << 24])
def test_torch_gives_the_same_as_the_kernels(monkeypatch, piece):
    """What runs on a GPU, here on the CPU."""
    a, b = pair(5000, 0.3)
    a[:4] = torch.tensor([0.0, -0.0, math.inf, -1.0])
    compiled = mutual_information(a, b)
    monkeypatch.setattr(module, "has_kernels", lambda _: False)
    monkeypatch.setattr(module, "PIECE", piece)
    assert mutual_information(a, b) == pytest.approx(compiled, abs=1e-12)
    a[7] = math.nan
    with pytest.raises(NotANumber):
        mutual_information(a, b)


@pytest.mark.parametrize("where", [0, 1])
def test_nan_is_refused(where):
    tensors = list(pair(10, 0.5))
    tensors[where][3] = float("nan")
    with pytest.raises(NotANumber):
        mutual_information(*tensors)
    tensors[where] = -tensors[where]
    with pytest.raises(NotANumber):
        mutual_information(*tensors)


def test_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"found \(2,\) and \(3,\)"):
        mutual_information(torch.ones(2), torch.ones(3))


def test_keys_come_sorted_and_once():
    a, b = pair(2000, 1.0)
    keys, counts = kernels.count_pairs(*(t.view(torch.int16).numpy().view("uint16") for t in (a, b)))
    assert (keys[1:] > keys[:-1]).all()
    assert counts.sum() == 2000
    assert counts.min() >= 1
