"""widen, against a naive implementation."""

import math

import pytest
import torch

from tests.merging.methods.naive import random_tensors, run


def naive_widen(base, experts, t, c, transposed):
    """WIDEN column by column, in plain Python."""
    matrix = base.dim() > 1
    tensors = [w.T if transposed else w for w in (base, *experts)] if matrix else [base, *experts]
    if not matrix:
        values = [[abs(a - b) for a, b in zip(e.tolist(), base.tolist(), strict=True)] for e in experts]
        scores = naive_scores(values, t, c)
    else:
        columns = [[w[:, j].tolist() for j in range(w.shape[1])] for w in tensors]
        norms = [[math.sqrt(math.fsum(x * x for x in column)) for column in model] for model in columns]
        moved = [[abs(n - n0) for n, n0 in zip(norm, norms[0], strict=True)] for norm in norms[1:]]
        turned = [
            [
                1 - math.fsum(x * y for x, y in zip(a, b, strict=True)) / (na * nb)
                for a, b, na, nb in zip(*four, strict=True)
            ]
            for four in ((columns[i], columns[0], norms[i], norms[0]) for i in range(1, len(columns)))
        ]
        parts = [naive_scores([naive_ranks(row) for row in rows], t, c) for rows in (moved, turned)]
        scores = [[0.5 * (a + b) for a, b in zip(*rows, strict=True)] for rows in zip(*parts, strict=True)]
    merged = tensors[0].clone()
    for expert, score in zip(tensors[1:], scores, strict=True):
        merged += (expert - tensors[0]) * torch.tensor(score, dtype=torch.float64)
    return merged.T if transposed and matrix else merged


def naive_ranks(values):
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    for k, i in enumerate(order):
        ranks[i] = k / len(values)
    return ranks


def naive_scores(values, t, c):
    scores = [[0.0] * len(values[0]) for _ in values]
    for j in range(len(values[0])):
        exponentials = [math.exp(row[j]) for row in values]
        for i, row in enumerate(values):
            above = row[j] > t * sum(row) / len(row)
            scores[i][j] = c if above else exponentials[i] / sum(exponentials)
    return scores


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("shape", [(6, 9), (9,)])
@pytest.mark.parametrize(("t", "c"), [(1.0, 1.0), (1.2, 0.7)])
def test_widen_equals_a_naive_implementation(name, shape, t, c):
    base, *experts = random_tensors(4, shape)
    found = run("widen", base, experts, name=name, above_average_value_ratio=t, score_calibration_value=c)
    expected = naive_widen(base, experts, t, c, transposed=name == "model.embed_tokens.weight")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # ranks and their scores are float32


def test_widen_ranks_a_column_of_zeros_highest():
    """Its direction is 0/0, NaN, which counts above every number; the merge stays finite."""
    base, one, two = random_tensors(3, (4, 3))
    one[:, 1] = 0.0
    merged = run("widen", base, [one, two])
    assert bool(merged.isfinite().all())
