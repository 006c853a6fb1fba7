"""Expansion is deterministic, complete and readable."""

from pathlib import Path

from evaluation.candidates import expand, label, plain
from evaluation.informed import Way
from evaluation.study import Study

STUDY = {
    "name": "demo",
    "base": "./base",
    "experts": {"math": "./math", "code": "./code", "chat": "./chat"},
    "methods": ["linear", {"merge_method": "ties", "parameters": {"density": [0.2, 0.5], "lambda": 0.7}}],
    "informed": ["plain", {"aim": {"omega": [0.2, 0.4]}}],
    "calibration": {"texts": "./texts.jsonl"},
    "benchmarks": {"math": {"task": "gsm8k"}},
    "objectives": {"math": "maximise"},
    "seed": 7,
}


def study(**changes):
    return Study.parse({**STUDY, **changes}, folder=Path("."))


def test_all_is_every_subset_of_two_or_more_largest_first():
    assert study().expert_combinations() == [
        ("math", "code", "chat"),
        ("math", "code"),
        ("math", "chat"),
        ("code", "chat"),
    ]


def test_every_combination_method_setting_and_way_of_informing_is_a_candidate():
    names = [candidate.name for candidate in expand(study())]
    assert len(names) == len(set(names)) == 4 * (1 + 2) * (1 + 2)
    assert names[:9] == [
        "linear math+code+chat",
        "linear+aim(w=0.2) math+code+chat",
        "linear+aim(w=0.4) math+code+chat",
        "ties(d=0.2,l=0.7) math+code+chat",
        "ties(d=0.2,l=0.7)+aim(w=0.2) math+code+chat",
        "ties(d=0.2,l=0.7)+aim(w=0.4) math+code+chat",
        "ties(d=0.5,l=0.7) math+code+chat",
        "ties(d=0.5,l=0.7)+aim(w=0.2) math+code+chat",
        "ties(d=0.5,l=0.7)+aim(w=0.4) math+code+chat",
    ]


def test_a_listed_combination_takes_the_order_of_the_experts():
    assert study(combinations=[["code", "math"]]).expert_combinations() == [("math", "code")]


def test_recipes_carry_references_parameters_seed_and_omega():
    references = {"base": "org/base@1", "math": "org/math@2", "code": "org/code@3", "chat": "org/chat@4"}
    recipe = expand(study(combinations=[["math", "chat"]]), references)[5].recipe
    assert recipe.merge_method == "ties"
    assert recipe.inputs == ["org/base@1", "org/math@2", "org/chat@4"]
    assert recipe.parameters == {"density": 0.2, "lambda": 0.7}
    assert recipe.random_seed == 7
    assert recipe.aim.omega == 0.4


def test_labels_show_only_what_the_study_sets():
    assert label("ties", {}, Way()) == "ties"
    assert label("ties", {"density": 0.5}, Way("aim", omega=0.4)) == "ties(d=0.5)+aim(w=0.4)"
    assert label("linear", {"normalize": False}, Way()) == "linear(norm=off)"


def test_acm_and_its_controls_are_asked_for_in_a_word():
    informed = ["plain", "acm", {"acm_uniform": {"t": [0.7, -1.8]}}, "acm_shuffled"]
    found = expand(study(combinations=[["math", "chat"]], methods=["linear"], informed=informed))
    assert [one.name for one in found] == [
        "linear math+chat",
        "linear+acm(t=0.7) math+chat",
        "linear+acm_uniform(t=0.7) math+chat",
        "linear+acm_uniform(t=-1.8) math+chat",
        "linear+acm_shuffled(t=0.7) math+chat",
    ]
    assert [one.informed for one in found] == ["plain", "acm", "acm_uniform", "acm_uniform", "acm_shuffled"]
    assert [one.recipe.acm and one.recipe.acm.control for one in found] == [
        None,
        None,
        "uniform",
        "uniform",
        "shuffled",
    ]
    assert found[3].t == found[3].recipe.acm.t == -1.8


def test_acm_takes_the_place_of_task_arithmetics_coefficients():
    methods = [{"merge_method": "task_arithmetic", "parameters": {"lambda": [0.5, 0.7]}}]
    found = expand(study(combinations=[["math", "chat"]], methods=methods, informed=["plain", "acm"]))
    assert [one.name for one in found] == [
        "task_arithmetic(l=0.5) math+chat",
        "task_arithmetic+acm(t=0.7) math+chat",
        "task_arithmetic(l=0.7) math+chat",
    ]
    assert found[1].recipe.parameters == {}


def test_the_plain_merge_of_an_informed_one():
    found = expand(study(combinations=[["math", "chat"]], informed=["acm"]))
    assert [plain(one).name for one in found][:2] == ["linear math+chat", "ties(d=0.2,l=0.7) math+chat"]
    again = expand(study(combinations=[["math", "chat"]], informed=["plain"]))
    assert [plain(one) for one in found] == again
