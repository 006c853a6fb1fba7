"""The engine and the methods against recorded runs of the published code."""

import pytest
import torch

from merging.aim import module_of, read_statistics, relax
from merging.methods.random import masked
from merging.methods.task_arithmetic import weighted_sum
from merging.methods.ties import elect
from merging.recipe import Recipe

F32 = [
    ("task_arithmetic", "task_arithmetic", (1, 1, 1), {}),
    ("task_arithmetic_w", "task_arithmetic", (0.5, 0.3, 0.7), {}),
    ("ties", "ties", (1, 1, 1), {}),
    ("ties_d0.2", "ties", (1, 1, 1), {"density": 0.2}),
    ("ties_w_d0.6", "ties", (0.5, 1.0, 0.25), {"density": 0.6}),
    ("dare_linear", "dare_linear", (1, 1, 1), {}),
    ("mergelm_ties", "ties", (1, 1, 1), {"density": 0.2, "trim": "mergelm"}),
]


def furthest(found: dict, expected: dict) -> float:
    assert set(found) == set(expected)
    return max((found[name].double() - expected[name].double()).abs().max().item() for name in expected)


@pytest.mark.parametrize(("label", "method", "weights", "parameters"), F32, ids=[case[0] for case in F32])
def test_fp32_merges_equal_the_published_codes(
    oracle, tmp_path, without_postflight, label, method, weights, parameters
):
    case = oracle("llama_f32")
    found = case.merge(case.recipe(method, weights, parameters=parameters), tmp_path / "out")
    assert furthest(found, case.recorded("outputs", label)) <= 1e-6


@pytest.mark.parametrize("omega", [0.0, 0.2, 0.4, 0.6, 1.0])
@pytest.mark.parametrize(
    ("label", "method", "density"), [("task_arithmetic", "task_arithmetic", 1), ("ties_d0.2", "ties", 0.2)]
)
def test_aim_with_recorded_statistics(oracle, tmp_path, without_postflight, label, method, density, omega):
    case = oracle("llama_f32")
    parameters = {"density": density} if method == "ties" else {}
    recipe = case.recipe(method, parameters=parameters, aim={"omega": omega})
    found = case.merge(recipe, tmp_path / "out", statistics=case.statistics)
    assert furthest(found, case.recorded("outputs", f"{label}__aim_w{omega}")) <= 1e-6


@pytest.mark.parametrize("case_name", ["llama_f32", "llama_bf16"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_with_recorded_masks(oracle, group, case_name, method):
    case = oracle(case_name)
    found, base, experts = dare_with_masks(case, group, method)
    recorded = case.recorded("outputs", f"{method}_d0.3")
    if case_name == "llama_f32":
        assert furthest(found, recorded) <= 1e-6
    else:
        assert share_beyond_a_step(found, recorded, base, experts, density=0.3) <= 1e-3


@pytest.mark.parametrize("omega", [0.0, 0.2, 0.4, 0.6, 1.0])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_aim_after_dare_with_recorded_masks(oracle, group, method, omega):
    case = oracle("llama_f32")
    merged, base, _ = dare_with_masks(case, group, method)
    statistics = read_statistics(case.statistics).vectors
    for name, weight in merged.items():
        if module := module_of(name, tied=False):
            merged[name] = relax(base[name], weight, statistics[module], omega)
    assert furthest(merged, case.recorded("outputs", f"{method}_d0.3__aim_w{omega}")) <= 1e-6


def dare_with_masks(case, group, method):
    """The merge with the recorded run's masks, its inputs read in the dtype that run worked in."""
    masks = case.recorded("masks", f"{method}_d0.3")
    recorded = case.recorded("outputs", f"{method}_d0.3")
    base, *experts = [as_recorded(case.weights(name), recorded) for name in ["base", *case.experts]]
    merge = weighted_sum if method == "dare_linear" else elect
    found = {}
    for name, weight in base.items():
        tensors = group(method, weight, [expert[name] for expert in experts])
        deltas = [masked(d, -masks[f"{name}#{i}"].int()) / 0.3 for i, d in enumerate(tensors.deltas())]
        found[name] = merge(tensors, deltas)
    return found, base, experts


def as_recorded(weights, recorded):
    return {name: weights[name].to(recorded[name].dtype).float()[: len(recorded[name])] for name in recorded}


def share_beyond_a_step(found, recorded, base, experts, density=1.0) -> float:
    """The share of elements off by more than one bf16 step at the largest number that entered them.

    The recorded runs round to bf16 after every operation; what lies beyond a step here is where their roundings of
    deltas and sums add up.
    """
    beyond = total = 0
    for name, expected in recorded.items():
        deltas = [(expert[name] - base[name]) / density for expert in experts]
        entered = [base[name], expected.float(), sum(deltas), *deltas, *(expert[name] for expert in experts)]
        largest = torch.stack([t.abs() for t in entered]).amax(0).clamp(min=1e-30)
        step = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 8)
        beyond += int(((found[name].bfloat16().float() - expected.float()).abs() > step).sum())
        total += expected.numel()
    return beyond / total


@pytest.mark.parametrize("case_name", ["llama_bf16", "llama_addtok_bf16", "qwen2_tied_bf16"])
def test_bf16_task_arithmetic_within_one_step(oracle, tmp_path, without_postflight, case_name):
    case = oracle(case_name)
    found = case.merge(case.recipe("task_arithmetic", dtype="bfloat16"), tmp_path / "out")
    recorded = case.recorded("outputs", "task_arithmetic")
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in recorded.items()}
    base, *experts = [as_recorded(case.weights(name), recorded) for name in ["base", *case.experts]]
    assert share_beyond_a_step(found, recorded, base, experts) <= 1e-3


@pytest.mark.parametrize(
    ("label", "method", "weights"), [("task_arithmetic_w", "task_arithmetic", (0.5, 0.3, 0.7)), ("ties", "ties", None)]
)
def test_bf16_weights_and_elections_within_one_step(oracle, tmp_path, without_postflight, label, method, weights):
    case = oracle("llama_bf16")
    found = case.merge(case.recipe(method, weights or (1, 1, 1), dtype="bfloat16"), tmp_path / "out")
    recorded = case.recorded("outputs", label)
    base, *experts = [as_recorded(case.weights(name), recorded) for name in ["base", *case.experts]]
    assert share_beyond_a_step(found, recorded, base, experts) <= 1e-3


@pytest.mark.parametrize(
    ("case_name", "label", "weights"),
    [
        ("llama_bf16", "ties_d0.2", (1, 1, 1)),
        ("llama_bf16", "ties_w_d0.6", (0.5, 1.0, 0.25)),
        ("llama_addtok_bf16", "ties_d0.2", (1, 1, 1)),
        ("qwen2_tied_bf16", "ties_d0.2", (1, 1, 1)),
    ],
)
def test_bf16_ties_within_one_step_outside_the_cut(oracle, group, case_name, label, weights):
    """With the recorded masks: which of several equal bf16 magnitudes survive a cut is arbitrary in the recording."""
    case = oracle(case_name)
    masks, recorded = case.recorded("masks", label), case.recorded("outputs", label)
    base, *experts = [as_recorded(case.weights(name), recorded) for name in ["base", *case.experts]]
    found = {}
    for name, weight in base.items():
        tensors = group("ties", weight, [expert[name] for expert in experts], [{"weight": w} for w in weights])
        found[name] = elect(tensors, [d * masks[f"{name}#{i}"].bool() for i, d in enumerate(tensors.deltas())])
    assert share_beyond_a_step(found, recorded, base, experts) <= 1e-3


@pytest.mark.parametrize("case_name", ["llama_bf16", "llama_addtok_bf16", "qwen2_tied_bf16"])
def test_bf16_aim_relaxes_as_recorded(oracle, tmp_path, without_postflight, case_name):
    """Tied embeddings take the head's statistics, untied ones and biases stay as merged."""
    case = oracle(case_name)
    recipe = case.recipe("task_arithmetic", dtype="bfloat16", aim={"omega": 0.4})
    found = case.merge(recipe, tmp_path / "out", statistics=case.statistics)
    recorded = case.recorded("outputs", "task_arithmetic__aim_w0.4")
    base, *experts = [as_recorded(case.weights(name), recorded) for name in ["base", *case.experts]]
    assert share_beyond_a_step(found, recorded, base, experts) <= 1e-3


def test_added_rows_are_cut_to_the_bases(oracle, tmp_path, without_postflight):
    case = oracle("llama_addtok_bf16")
    rows = len(case.weights("base")["lm_head.weight"])
    assert len(case.weights("ft_instruct")["lm_head.weight"]) > rows
    found = case.merge(case.recipe("linear"), tmp_path / "out")
    assert len(found["lm_head.weight"]) == len(found["model.embed_tokens.weight"]) == rows


@pytest.mark.parametrize(
    ("label", "method", "parameters"),
    [
        ("mergelm_task_arithmetic", "task_arithmetic", {}),
        ("mergelm_ties", "ties", {"density": 0.2, "trim": "mergelm"}),
    ],
)
def test_added_rows_are_the_union_as_recorded(oracle, tmp_path, without_postflight, label, method, parameters):
    """One expert has a row for the token it adds, one has the token alone; every other model gets its mean row."""
    case = oracle("llama_addtok_bf16")
    recipe = case.recipe(method, parameters=parameters, dtype="bfloat16", tokenizer_source="union")
    found = case.merge(recipe, tmp_path / "out")
    recorded = case.recorded("outputs", label)
    assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in recorded.items()}
    assert len(found["lm_head.weight"]) == len(case.weights("base")["lm_head.weight"]) + 1
    whole = [with_mean_rows(case.weights(name), recorded) for name in ["base", *case.experts]]
    base, *experts = [as_recorded(weights, recorded) for weights in whole]
    assert share_beyond_a_step(found, recorded, base, experts) <= 1e-3


def with_mean_rows(weights, recorded):
    return {
        name: torch.cat([weights[name], weights[name].mean(0, keepdim=True)][: 1 + (len(weights[name]) < len(of))])
        for name, of in recorded.items()
    }


WIDEN = [
    ("widen", ["ft_code", "ft_instruct", "ft_math"], {}),
    ("widen_pair", ["ft_code", "ft_math"], {}),
    (
        "widen_t1.2_s0.7",
        ["ft_code", "ft_instruct", "ft_math"],
        {"above_average_value_ratio": 1.2, "score_calibration_value": 0.7},
    ),
]


@pytest.mark.parametrize(("label", "experts", "parameters"), WIDEN, ids=[case[0] for case in WIDEN])
def test_widen_in_fp64(oracle, tmp_path, without_postflight, label, experts, parameters):
    case = oracle("llama_f64_widen")
    recipe = Recipe.parse(
        {
            "merge_method": "widen",
            "base_model": "base",
            "models": [{"model": name} for name in experts],
            "parameters": parameters,
            "dtype": "float64",
        }
    )
    assert furthest(case.merge(recipe, tmp_path / "out"), case.recorded("outputs", label)) <= 1e-9


def test_widen_then_aim_in_fp64(oracle, tmp_path, without_postflight):
    case = oracle("llama_f64_widen")
    models = [{"model": name} for name in case.experts]
    recipe = Recipe.parse(
        {"merge_method": "widen", "base_model": "base", "models": models, "dtype": "float64", "aim": {"omega": 0.4}}
    )
    found = case.merge(recipe, tmp_path / "out", statistics=case.statistics)
    # the statistics, and so the recorded importance, are float32
    assert furthest(found, case.recorded("outputs", "widen__aim_w0.4")) <= 1e-7


def test_mergelm_ties_in_fp64(oracle, tmp_path, without_postflight):
    case = oracle("llama_f64_widen")
    recipe = case.recipe("ties", parameters={"density": 0.2, "trim": "mergelm"}, dtype="float64")
    assert furthest(case.merge(recipe, tmp_path / "out"), case.recorded("outputs", "mergelm_ties")) <= 1e-9
