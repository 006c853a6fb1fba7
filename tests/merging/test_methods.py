"""Every method against a closed form or a second, naive implementation; and what the registry promises."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.errors import InputError
from merging.methods import METHODS, Group, merge_whole, validate_parameters
from merging.methods.della import probabilities
from merging.methods.random import keep_mask

RANDOM = {"dare_linear", "dare_ties", "della", "della_linear"}
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


def experts_for(name, pool):
    """As many experts as a method takes."""
    least, most = METHODS[name].experts
    return pool[: min(len(pool), most or len(pool))] if least <= len(pool) else pool


@st.composite
def base_and_experts(draw, most=4):
    length, count = draw(st.integers(0, 12)), draw(st.integers(2, most))
    rows = draw(st.lists(st.lists(floats, min_size=length, max_size=length), min_size=count, max_size=count))
    base, *experts = (torch.tensor(row, dtype=torch.float64) for row in rows)
    return base, experts, [draw(st.sampled_from([1.0, 0.5, -0.5, 2.0])) for _ in experts]


def weighted(weights):
    return [{"weight": weight} for weight in weights]


close = {"rtol": 1e-12, "atol": 1e-12}


# --- the registry


@pytest.mark.parametrize("name", METHODS)
def test_declarations_are_complete(name):
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.paper
    for parameter in method.parameters.values():
        assert parameter.help
        assert parameter.problem(parameter.default) is None
    assert validate_parameters(name, {}, "here") == []


def test_validation_names_the_place_and_the_nearest_name():
    assert validate_parameters("ties", {"densty": 1}, "here") == [
        "here: unknown parameter 'densty' of ties; did you mean density?"
    ]
    assert validate_parameters("ties", {"density": -1}, "here") == [
        "here: density must be a number from 0 to 1, found -1"
    ]
    (problem,) = validate_parameters("della", {"density": 0.1, "epsilon": 0.15}, "here")
    assert "must lie between 0 and 1" in problem


# --- what all methods promise


@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_left_as_they_were(name):
    base, *experts = random_tensors(4)
    before = [t.clone() for t in (base, *experts)]
    run(name, base, experts_for(name, experts), density=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *experts), strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (1,), (1, 1), (2, 3, 4), ()])
def test_any_shape_gives_its_own(name, shape):
    base, *experts = random_tensors(4, shape)
    merged = run(name, base, experts_for(name, experts), density=0.5)
    assert merged.shape == shape
    assert merged.dtype == torch.float64
    assert bool(merged.isfinite().all())


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].needs_base and name not in RANDOM])
def test_experts_equal_to_the_base_give_the_base(name):
    (base,) = random_tensors(1)
    merged = run(name, base, experts_for(name, [base.clone() for _ in range(3)]))
    torch.testing.assert_close(merged, base, **close)


# --- linear, task arithmetic, TIES, DARE


def test_linear_is_the_weighted_mean():
    experts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]
    assert run("linear", None, experts, weighted([1, 3])).tolist() == [2.5, 5.0]
    assert run("linear", None, experts, weighted([1, 3]), normalize=False).tolist() == [10.0, 20.0]


def test_task_arithmetic_in_closed_form():
    base, one, two = random_tensors(3)
    merged = run("task_arithmetic", base, [one, two], weighted([0.5, -2.0]), **{"lambda": 0.3})
    torch.testing.assert_close(merged, base + 0.3 * (0.5 * (one - base) - 2.0 * (two - base)), **close)


def naive_ties(base, experts, weights, density, normalize, scale):
    """TIES element by element, in plain Python."""
    kept = []
    for expert in experts:
        delta = [float(x) - float(b) for x, b in zip(expert, base, strict=True)]
        order = sorted(range(len(delta)), key=lambda i: (-abs(delta[i]), i))
        largest = set(order[: int(density * len(delta))])
        kept.append([d if i in largest else 0.0 for i, d in enumerate(delta)])
    return naive_election(base, kept, weights, normalize, scale)


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


@given(base_and_experts(), st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]), st.booleans(), st.sampled_from([1.0, 0.3]))
@settings(max_examples=200, deadline=None)
def test_ties_equals_a_naive_implementation(inputs, density, normalize, scale):
    base, experts, weights = inputs
    keys = {"density": density, "normalize": normalize, "lambda": scale}
    found = run("ties", base, experts, weighted(weights), **keys)
    torch.testing.assert_close(found, naive_ties(base, experts, weights, density, normalize, scale), **close)


@given(base_and_experts(), st.sampled_from([0.1, 0.5, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_trimming_over_the_model_is_mergelms_rule(inputs, density):
    """One tensor is the whole model here: `|d| >=` the k-th smallest, and the majority's sign where a sum is 0."""
    base, experts, _ = inputs
    found = run("ties", base, experts, density=density, trim="model")
    if base.numel() == 0:
        assert found.numel() == 0
        return
    deltas = torch.stack([expert - base for expert in experts])
    k = int(base.numel() * (1 - density))
    cuts = deltas.abs().sort(dim=1).values[:, k - 1 : k] if k else torch.zeros(len(experts), 1)
    deltas = deltas * (deltas.abs() >= cuts)
    sign = deltas.sum(0).sign()
    sign[sign == 0] = sign.sum().sign()
    agreeing = deltas * (deltas * sign > 0)
    expected = base + agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    torch.testing.assert_close(found, expected, **close)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
@pytest.mark.parametrize("rescale", ["density", "l1", "none"])
def test_dare_drops_by_its_masks_and_rescales(name, rescale):
    base, *experts = random_tensors(4, (40, 30))
    found = run(name, base, experts, weighted([1, 0.5, 2]), density=0.3, rescale=rescale, seed=7)
    deltas = []
    for i, expert in enumerate(experts):
        delta = expert - base
        kept = delta * (keep_mask(delta, 0.3, 7, f"expert-{i}", "w") != 0)
        scale = {"density": 1 / 0.3, "l1": (delta.abs().sum() / kept.abs().sum()).item(), "none": 1.0}[rescale]
        deltas.append(kept * scale)
    if name == "dare_linear":
        expected = base + sum(w * d for w, d in zip([1, 0.5, 2], deltas, strict=True))
    else:
        flat = naive_election(base.flatten(), [d.flatten().tolist() for d in deltas], [1, 0.5, 2], False)
        expected = flat.view(base.shape)
    torch.testing.assert_close(found, expected, **close)


def test_dare_at_density_one_is_task_arithmetic():
    base, *experts = random_tensors(3)
    assert torch.equal(run("dare_linear", base, experts), run("task_arithmetic", base, experts))


# --- breadcrumbs, DELLA


@given(base_and_experts(), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_breadcrumbs_equals_a_naive_implementation(inputs, density, gamma):
    base, experts, weights = inputs
    kept = []
    for expert in experts:
        delta, n = (expert - base).tolist(), base.numel()
        stay = n if density == 1 else int(density * n)
        order = sorted(range(n), key=lambda i: (-abs(delta[i]), i))
        outliers = min(int(gamma * n), n - stay)
        chosen = set(order[outliers : outliers + stay])
        kept.append([d if i in chosen else 0.0 for i, d in enumerate(delta)])
    keys = {"density": density, "gamma": gamma}
    linear = base + sum(w * torch.tensor(k, dtype=torch.float64) for w, k in zip(weights, kept, strict=True))
    torch.testing.assert_close(run("breadcrumbs", base, experts, weighted(weights), **keys), linear, **close)
    elected = naive_election(base, kept, weights, normalize=False)
    torch.testing.assert_close(run("breadcrumbs_ties", base, experts, weighted(weights), **keys), elected, **close)


def test_della_keeps_by_rank_within_a_row():
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, -5.0]])
    expected = torch.tensor([[0.6, 0.4, 0.5], [0.4, 0.5, 0.6]])
    torch.testing.assert_close(probabilities(delta, 0.5, 0.1), expected)
    torch.testing.assert_close(probabilities(delta[0], 0.5, 0.1), expected[0])


def test_della_keeps_its_share_and_the_l1_norm():
    base, expert = torch.zeros(200, 300), torch.rand(200, 300) + 0.1
    merged = run("della_linear", base, [expert], density=0.4, epsilon=0.2)
    assert abs((merged != 0).double().mean().item() - 0.4) < 0.01
    torch.testing.assert_close(merged.sum(), expert.sum(), rtol=1e-4, atol=0)
    large = expert > expert.median()
    assert (merged[large] != 0).double().mean() > (merged[~large] != 0).double().mean() + 0.1
    by_probability = run("della_linear", base, [expert], density=0.4, epsilon=0.2, rescale="density")
    chance = probabilities(expert, 0.4, 0.2)
    kept = by_probability != 0
    torch.testing.assert_close(by_probability[kept], (expert / chance)[kept])


# --- WIDEN


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


# --- on the sphere


def angle(a, b):
    return math.acos(max(-1, min(1, (a * b).sum().item() / (a.norm() * b.norm()).item())))


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_walks_the_arc(t):
    base, other = random_tensors(2)
    theta = angle(base, other)
    expected = (math.sin((1 - t) * theta) * base + math.sin(t * theta) * other) / math.sin(theta)
    torch.testing.assert_close(run("slerp", base, [other], t=t), expected, **close)


def test_slerp_is_linear_between_parallel_vectors():
    (base,) = random_tensors(1)
    torch.testing.assert_close(run("slerp", base, [3 * base], t=0.25), 1.5 * base, **close)


def test_slerp_between_unit_vectors_stays_on_the_sphere():
    base, other = (v / v.norm() for v in random_tensors(2))
    merged = run("slerp", base, [other], t=0.3)
    assert merged.norm().item() == pytest.approx(1.0)
    assert angle(base, merged) == pytest.approx(0.3 * angle(base, other))


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("keys", [{}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}])
def test_nuslerp_equals_a_vector_by_vector_implementation(with_base, keys):
    base, one, two = random_tensors(3, (4, 5))
    origin = base if with_base else torch.zeros_like(base)
    a, b = one - origin, two - origin
    if not keys:
        vectors = [(a.flatten(), b.flatten())]
    elif "nuslerp_row_wise" in keys:
        vectors = [(a[:, j], b[:, j]) for j in range(5)]
    else:
        vectors = [(a[i], b[i]) for i in range(4)]
    t, merged = 0.75, []
    for u, v in vectors:
        theta = angle(u, v)
        merged.append((math.sin((1 - t) * theta) * u + math.sin(t * theta) * v) / math.sin(theta))
    stacked = torch.stack(merged, dim=1 if "nuslerp_row_wise" in keys else 0).reshape(4, 5)
    found = run("nuslerp", base if with_base else None, [one, two], weighted([1, 3]), **keys)
    torch.testing.assert_close(found, origin + stacked, **close)


def test_nuslerp_of_parallel_vectors_is_linear():
    (one,) = random_tensors(1)
    for keys in ({}, {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}):
        torch.testing.assert_close(run("nuslerp", None, [one, 3 * one], **keys), 2 * one, **close)


@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_equals_the_construction_in_full_space(with_base):
    base, *experts = random_tensors(4)
    weights = [0.5, 1.0, 2.0]
    origin = base if with_base else torch.zeros_like(base)
    vectors = torch.stack([(expert - origin).flatten() for expert in experts])
    w = torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    norms = vectors.norm(dim=1, keepdim=True)
    units = vectors / norms
    mean = (units * w[:, None]).sum(0)
    mean = mean / mean.norm()
    tangent = ((units - (units @ mean)[:, None] * mean) * w[:, None]).sum(0)
    length = tangent.norm() + 1e-8
    point = mean * torch.cos(length) + tangent * torch.sin(length) / length
    expected = origin + (point * (norms[:, 0] * w).sum()).view(base.shape)
    found = run("multislerp", base if with_base else None, experts, weighted(weights))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_multislerp_of_opposite_vectors():
    (one,) = random_tensors(1)
    torch.testing.assert_close(run("multislerp", None, [one, -one]), torch.zeros_like(one), **close)
    others = [torch.tensor([1.0, 0.0]), torch.tensor([-0.5, 3**0.5 / 2]), torch.tensor([-0.5, -(3**0.5) / 2])]
    with pytest.raises(InputError, match="directions cancel in tensor w"):
        run("multislerp", None, others, eps=1e-6)


def test_karcher_mean_balances_the_logarithms():
    """At the Karcher mean the tangent vectors towards the inputs sum to 0, and its length is their mean length."""
    experts = [e + 2 for e in random_tensors(3)]
    merged = run("karcher", None, experts, max_iter=100, tol=1e-12)
    mean = merged.flatten() / merged.norm()
    logarithms = []
    for expert in experts:
        unit = expert.flatten() / expert.norm()
        theta = angle(mean, unit)
        logarithms.append(theta / math.sin(theta) * (unit - math.cos(theta) * mean))
    torch.testing.assert_close(sum(logarithms), torch.zeros_like(mean), rtol=0, atol=1e-9)
    assert merged.norm().item() == pytest.approx(sum(e.norm().item() for e in experts) / 3)


# --- the others


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_goes_as_far_as_the_angle_says(filter_wise):
    base, *experts = random_tensors(4, (4, 6))
    rows = zip(base, *experts, strict=True) if filter_wise else [(base, *experts)]
    merged = []
    for b, *xs in rows:
        cosine = sum(math.cos(angle(x - b, y - b)) for x, y in itertools.combinations(xs, 2)) / 3
        t = 3 * cosine / (1 + 2 * cosine)
        merged.append(t * sum(xs) / 3 + (1 - t) * b)
    expected = torch.stack(merged).reshape(base.shape)
    torch.testing.assert_close(
        run("model_stock", base, experts, filter_wise=filter_wise), expected, rtol=1e-9, atol=1e-9
    )


@given(base_and_experts(), st.sampled_from([0.0, 0.3, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_sce_equals_a_naive_implementation(inputs, topk):
    base, experts, _ = inputs
    deltas = torch.stack([expert - base for expert in experts])
    variance = (deltas - deltas.mean(dim=0)).square().mean(dim=0)
    if topk < 1:
        count = int(int((variance != 0).sum()) * topk)
        order = sorted(range(base.numel()), key=lambda i: (-variance[i].item(), i))
        deltas = deltas * torch.tensor([i in set(order[:count]) for i in range(base.numel())])
    weights = deltas.square().mean(dim=1) if base.numel() else torch.zeros(len(experts), dtype=torch.float64)
    weights = weights / weights.sum() if weights.sum() >= 1e-6 else torch.full_like(weights, 1 / len(experts))
    sign = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    shares = weights[:, None] * (deltas.sign() == sign)
    expected = base + (deltas * shares).sum(0) / shares.sum(0).clamp(min=1e-6)
    torch.testing.assert_close(run("sce", base, experts, select_topk=topk), expected, rtol=1e-9, atol=1e-9)


def test_nearswap_takes_what_is_near():
    base, other = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.1, 2.0, 1.0])
    torch.testing.assert_close(run("nearswap", base, [other], t=0.5), torch.tensor([0.1, 0.5, 1.0]))


def test_arcee_fusion_takes_the_important_changes():
    base, other = random_tensors(2, (20, 11))
    p, q = other.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    score = (other - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = score.flatten().sort().values
    q1, median, q3 = (ordered[int(q * (len(ordered) - 1))] for q in (0.25, 0.5, 0.75))
    expected = torch.where(score >= median + 1.5 * (q3 - q1), other, base)
    assert 0 < int((expected != base).sum()) < base.numel()
    torch.testing.assert_close(run("arcee_fusion", base, [other]), expected, **close)


def test_ram_averages_what_several_changed():
    base = torch.zeros(4, dtype=torch.float64)
    one, two = torch.tensor([[3.0, 1.0, 0.0, 1e-6], [0.0, 2.0, 0.0, 5.0]], dtype=torch.float64)
    assert run("ram", base, [one, two]).tolist() == [3.0, 1.5, 0.0, 5.0]


def test_passthrough_scales():
    (one,) = random_tensors(1)
    assert torch.equal(run("passthrough", None, [one]), one)
    assert torch.equal(run("passthrough", None, [one], scale=0.5), one * 0.5)
