"""A plan knows every digest before anything is computed, and what a change of the study makes anew."""

from pathlib import Path

import pytest

from evaluation.plan import StudyPlan, plan_study
from evaluation.study import Study
from merging.errors import InputError

STUDY = {
    "name": "demo",
    "base": "./base",
    "experts": {"math": "./math", "code": "./code"},
    "methods": ["linear", {"merge_method": "ties", "parameters": {"density": 0.5}}],
    "informed": ["plain", "aim"],
    "calibration": {"texts": "./texts.jsonl", "samples": 8, "block": 32},
    "benchmarks": {"math": {"task": "gsm8k", "limit": 10}, "code": {"task": "mmlu", "limit": 10}},
    "objectives": {"math": "maximise", "code": "maximise"},
}


def plan(texts=None, models=("b", "m", "c"), **changes):
    study = Study.parse({**STUDY, **changes}, folder=Path("."))
    resolved = {
        name: {"digest": digest * 64, "reference": source}
        for (name, source), digest in zip(study.sources.items(), models, strict=True)
    }
    return plan_study(study, "run-1", resolved, texts=texts or {"sha256": "t" * 64})


def digests(planned):
    members = [*planned.models, *planned.candidates]
    return (
        {one.name: one.digest for one in members},
        {(one.name, benchmark): digest for one in members for benchmark, digest in one.scores.items()},
    )


def test_planning_twice_gives_the_same_digests_all_different():
    models, scores = digests(plan())
    assert (models, scores) == digests(plan())
    assert len(set(models.values())) == 3 + 4
    assert len(set(scores.values())) == 2 * 7


def test_changing_one_benchmark_changes_its_scores_alone():
    before, after = (
        digests(plan()),
        digests(plan(benchmarks={**STUDY["benchmarks"], "code": {"task": "mmlu", "limit": 9}})),
    )
    assert before[0] == after[0]
    changed = {key for key in before[1] if before[1][key] != after[1][key]}
    assert changed == {key for key in before[1] if key[1] == "code"}


def test_adding_a_method_adds_its_candidates_alone():
    before, after = digests(plan()), digests(plan(methods=[*STUDY["methods"], "task_arithmetic"]))
    assert before[0].items() < after[0].items()
    assert before[1].items() < after[1].items()


def test_other_calibration_texts_change_the_informed_merges_alone():
    before, after = digests(plan())[0], digests(plan(texts={"sha256": "u" * 64}))[0]
    assert {name for name in before if before[name] != after[name]} == {name for name in before if "aim" in name}


def test_another_expert_changes_every_merge_with_it():
    before, after = digests(plan())[0], digests(plan(models=("b", "n", "c")))[0]
    assert {name for name in before if before[name] == after[name]} == {"base", "code"}


def test_only_what_is_missing_is_to_be_done():
    planned = plan()
    candidate = planned.candidates[1]
    missing = {candidate.scores["code"], planned.model("math").scores["math"], planned.calibration.digest}
    planned = planned.model_copy(update={"missing": frozenset(missing)})
    assert planned.to_fetch() == []
    assert planned.to_calibrate() == ["base"]
    assert planned.to_measure() == ["math"]
    assert planned.to_make() == [candidate.name]
    assert planned.reused() == {"fetch": 3, "calibrate": 0, "merge": 4, "benchmark": 12}


def test_two_names_for_one_model_are_refused():
    with pytest.raises(InputError, match="code: the same model as math"):
        plan(models=("b", "m", "m"))


def test_a_plan_survives_json():
    planned = plan().model_copy(update={"missing": frozenset({"a", "b"})})
    again = StudyPlan.model_validate(planned.model_dump(mode="json"))
    assert again.model_dump(mode="json") == planned.model_dump(mode="json")
    assert again.study.methods == planned.study.methods
