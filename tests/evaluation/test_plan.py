"""A plan knows every digest before anything is computed, and what a change of the study makes anew."""

from pathlib import Path

import pytest

from evaluation.plan import StudyPlan
from evaluation.planning import plan_study
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


@pytest.mark.parametrize("changes", [{}, {"informed": ["plain", "acm", {"acm_shuffled": {"t": 2}}]}])
def test_a_plan_survives_json(changes):
    planned = plan(**changes).model_copy(update={"missing": frozenset({"a", "b"})})
    again = StudyPlan.model_validate(planned.model_dump(mode="json"))
    assert again.missing == planned.missing
    left = [one.model_dump(mode="json", exclude={"missing"}) for one in (again, planned)]  # a set has no order
    assert left[0] == left[1]
    assert again.study.methods == planned.study.methods


ACM = {"informed": ["acm", "acm_uniform"], "methods": ["task_arithmetic", *STUDY["methods"]]}


def test_acm_measures_the_experts_and_the_plain_merges():
    planned = plan(**ACM)
    assert [one.against for one in planned.consensus] == [
        "math",
        "code",
        "linear math+code",
        "ties(d=0.5) math+code",
    ]
    assert planned.calibration is None
    assert [one.name for one in planned.stages] == ["linear math+code", "ties(d=0.5) math+code"]
    assert all(one.scores == {} for one in planned.stages)
    by_name = {one.name: one for one in planned.candidates}
    experts = by_name["task_arithmetic+acm(t=0.7) math+code"]
    assert experts.consensus == {
        "./math": planned.consensus_of("math").digest,
        "./code": planned.consensus_of("code").digest,
    }
    assert experts.plain is None
    merged = [by_name[f"linear+{way}(t=0.7) math+code"] for way in ("acm", "acm_uniform")]
    for one in merged:
        assert one.consensus == {"merged": planned.consensus_of("linear math+code").digest}
        assert one.plain == "linear math+code"
    assert len({one.digest for one in [*planned.candidates, *planned.stages]}) == 6 + 2


def test_a_plain_merge_that_is_a_candidate_is_made_once():
    planned = plan(**{**ACM, "informed": ["plain", "acm"]})
    assert planned.stages == []
    assert planned.member("linear math+code").scores != {}
    assert planned.consensus_of("linear math+code").digest == plan(**ACM).consensus_of("linear math+code").digest


def test_any_t_and_control_rests_on_the_same_measurements():
    informed = [{"acm": {"t": [0.7, 1.5, -1.8]}}, "acm_shuffled"]
    assert plan(**{**ACM, "informed": informed}).consensus == plan(**ACM).consensus


def test_what_acm_lacks_is_made_in_order():
    planned = plan(**{**ACM, "informed": ["plain", "acm"]})
    every = {one.digest for one in [*planned.candidates, *planned.consensus]}
    planned = planned.model_copy(update={"missing": frozenset(every)})
    assert planned.to_calibrate() == ["math", "code"]
    assert planned.to_merge("math+code", scaled=False) == [
        "task_arithmetic math+code",
        "task_arithmetic+acm(t=0.7) math+code",
        "linear math+code",
        "ties(d=0.5) math+code",
    ]
    assert planned.to_compare("math+code") == ["linear math+code", "ties(d=0.5) math+code"]
    scaled = ["linear+acm(t=0.7) math+code", "ties(d=0.5)+acm(t=0.7) math+code"]
    assert planned.to_merge("math+code", scaled=True) == scaled
    assert planned.to_compare("math") == planned.to_merge("math", scaled=True) == []


def test_a_stage_is_made_only_to_be_measured():
    planned = plan(**ACM)
    stage, consensus = planned.stages[0], planned.consensus_of("linear math+code")
    made = planned.model_copy(update={"missing": frozenset({stage.digest, consensus.digest})})
    assert made.to_merge("math+code", scaled=False) == ["linear math+code"]
    measured = planned.model_copy(update={"missing": frozenset({stage.digest})})
    assert measured.to_merge("math+code", scaled=False) == measured.to_compare("math+code") == []


def test_longest_and_texts_change_what_acm_measures():
    calibration = {**STUDY["calibration"], "longest": 7}
    before, cut = plan(**ACM), plan(**ACM, calibration=calibration)
    others = plan(texts={"sha256": "u" * 64}, **ACM)
    for one in (cut, others):
        assert not {c.digest for c in one.consensus} & {c.digest for c in before.consensus}
        assert not {c.digest for c in one.candidates} & {c.digest for c in before.candidates}
        assert [c.digest for c in one.stages] == [c.digest for c in before.stages]
