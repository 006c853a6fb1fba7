"""The cuts found in stored blocks are those of a sort."""

import numpy as np
import pytest
import torch

from merging.kernels import cut
from merging.methods import Group, selection
from merging.methods.definition import runs
from merging.methods.selection import largest

ROWS, COLUMNS, BLOCK = 30, 1100, 7
SHARES = [0.0, 0.001, 0.2, 0.5, 0.999, 1.0]


def as_stored(tensor):
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Over:
    """Passes over the blocks of a base and one expert, as a stream makes them."""

    def __init__(self, base, experts):
        self.base, self.experts = base, experts
        self.passes = 0

    def groups(self, change):
        for row in range(0, ROWS, BLOCK):
            rows = slice(row, row + BLOCK)
            experts = [change(expert[rows]) for expert in self.experts]
            yield Group("w", change(self.base[rows]), experts, {}, [], [], start=row * COLUMNS)

    def __call__(self, function, stride=1):
        assert stride > 1, "the kernels look at everything themselves"
        return [function(group) for group in self.groups(lambda rows: runs(rows, stride).float())]

    def stored(self, function, only=None):
        self.passes += 1
        groups = list(self.groups(as_stored))
        return [function(group) for group in (groups if only is None else [groups[only]])]


def by_sorting(magnitudes, count):
    """The `count` largest, the first of equals."""
    order = sorted(range(len(magnitudes)), key=lambda i: (-magnitudes[i], i))
    return {i for i in order[:count] if magnitudes[i] > 0}


def magnitudes(group):
    return [delta.abs() for delta in group.deltas()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["normal", "coarse", "mostly zero", "constant", "sorted", "by row"])
def test_exactly_the_largest_stay_the_first_of_equals(monkeypatch, dtype, kind):
    monkeypatch.setattr(selection, "SAMPLE", 2048)
    base = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype)
    noise = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).abs() + 1e-3
    delta = {
        "normal": noise,
        "coarse": (noise * 4).round() / 4,
        "mostly zero": noise * (noise > 1.5),
        "constant": torch.ones_like(noise),
        "sorted": noise.flatten().sort().values.reshape(noise.shape),
        "by row": noise * torch.logspace(-2, 2, ROWS)[:, None],
    }[kind]
    expert = (base + delta).to(dtype)
    found = (expert.float() - base.float()).abs().flatten().tolist()
    counts = [int(share * len(found)) for share in SHARES]
    over = Over(base, [expert] * len(counts))
    cuts = largest(over, magnitudes, counts, len(found), kernel="merging.kernels.cut:close")
    for count, one in zip(counts, cuts, strict=True):
        kept = one.keep(torch.tensor(found)).nonzero().flatten()
        assert set(kept.tolist()) == by_sorting(found, count)


def test_common_values_are_counted_and_not_collected(monkeypatch):
    monkeypatch.setattr(selection, "SAMPLE", 2048)
    looks = []
    real = cut.look
    monkeypatch.setattr(cut, "look", lambda *a, **k: looks.append(real(*a, **k)) or looks[-1])
    base = torch.zeros(ROWS, COLUMNS)
    expert = torch.randint(1, 9, base.shape, generator=torch.Generator().manual_seed(0)) / 8.0
    over = Over(base, [expert])
    [found] = largest(over, magnitudes, [base.numel() // 3], base.numel(), kernel="merging.kernels.cut:close")
    assert found.value == 0.75
    assert over.passes == 2, "one to count, one to find the last of the equals in its block"
    assert sum(len(part[0][1]) for part in looks) == 0


@pytest.mark.parametrize("k", range(1, 12))
def test_the_kth_largest_of_collected_and_counted_values(k):
    values, common, sizes = np.float32([5, 1, 3, 3]), np.float32([4, 3.5, 2]), np.array([2, 0, 5])
    every = sorted([5, 1, 3, 3, 4, 4] + [2] * 5, reverse=True)
    value, room = cut.kth_largest(values, common, sizes, k)
    assert value == every[k - 1]
    assert room == every[:k].count(value)
