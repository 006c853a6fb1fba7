"""What the tests of the methods share: a method on whole tensors, inputs for it, and naive pieces of some."""

import math

import torch
from hypothesis import strategies as st

from merging.methods import METHODS, Group, merge_whole

close = {"rtol": 1e-12, "atol": 1e-12}
floats = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 1e-30, 3e4])


def run(method, base, experts, settings=None, *, seed=0, name="w", **shared):
    """A method on whole tensors, with its defaults; `shared` also sets parameters of all models."""
    declared = METHODS[method].parameters.values()
    filled = {p.name: p.read(shared.get(p.name, p.default)) for p in declared if not p.per_model}
    per_model = [
        {p.name: p.read({**shared, **given}.get(p.name, p.default)) for p in declared if p.per_model}
        for given in settings or [{}] * len(experts)
    ]
    keys = [f"expert-{i}" for i in range(len(experts))]
    return merge_whole(METHODS[method], Group(name, base, list(experts), filled, per_model, keys, seed))


def random_tensors(count, shape=(7, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


@st.composite
def base_and_experts(draw, most=4):
    length, count = draw(st.integers(0, 12)), draw(st.integers(2, most))
    rows = draw(st.lists(st.lists(floats, min_size=length, max_size=length), min_size=count, max_size=count))
    base, *experts = (torch.tensor(row, dtype=torch.float64) for row in rows)
    return base, experts, [draw(st.sampled_from([1.0, 0.5, -0.5, 2.0])) for _ in experts]


def weighted(weights):
    return [{"weight": weight} for weight in weights]


def naive_election(base, kept, weights, normalize, scale=1.0):
    merged = []
    for i, b in enumerate(base.tolist()):
        parts = [w * k[i] for w, k in zip(weights, kept, strict=True)]
        sign = 1 if sum(parts) >= 0 else -1
        agreeing = [(d, w) for d, w in zip(parts, weights, strict=True) if d * sign > 0]
        mixed = sum(d for d, _ in agreeing)
        divisor = sum(w for _, w in agreeing) or 1.0
        merged.append(b + scale * (mixed / divisor if normalize else mixed))
    return torch.tensor(merged, dtype=torch.float64)


def angle(a, b):
    return math.acos(max(-1, min(1, (a * b).sum().item() / (a.norm() * b.norm()).item())))
