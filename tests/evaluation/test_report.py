"""From scores to front, gain, requirements and ranking; the gain against a count of volume by hand."""

from pathlib import Path

import pytest

from evaluation.planning import plan_study
from evaluation.report import build_report, not_made_lines
from evaluation.study import Study

STUDY = {
    "name": "demo",
    "base": "./base",
    "experts": {"math": "./math", "code": "./code"},
    "methods": ["linear", "task_arithmetic", "ties"],
    "benchmarks": {"math": {"task": "gsm8k"}, "code": {"task": "mmlu"}},
    "objectives": {"math": "maximise", "code": "maximise"},
    "promotion": {"model": "demo-merge", "require": ["math >= base + 5", "code >= 20"]},
}
INPUTS = {"base": (0.2, 0.2), "math": (0.6, 0.1), "code": (0.1, 0.6)}


def report(scores, tokens=None, missing=(), not_made=None, **changes):
    """A report from {"linear": (math, code), ...}; `tokens` likewise for the length of the answers."""
    study = Study.parse({**STUDY, **changes}, folder=Path("."))
    resolved = {name: {"digest": name * 8, "reference": source} for name, source in study.sources.items()}
    plan = plan_study(study, "run-1", resolved)
    plan = plan.model_copy(update={"missing": frozenset(missing)})
    given = {**INPUTS, **{f"{name} math+code": points for name, points in scores.items()}}
    lengths = {name if name in INPUTS else f"{name} math+code": value for name, value in (tokens or {}).items()}
    found = {}
    for member in [one for one in [*plan.models, *plan.candidates] if one.name not in (not_made or {})]:
        length = lengths.get(member.name, (None, None))
        for place, (benchmark, value) in enumerate(zip(("math", "code"), given[member.name], strict=True)):
            score = {"value": value, "stderr": 0.02, "response_tokens": length[place]}
            found[member.scores[benchmark]] = score
    built = build_report(plan, found, not_made)
    return built, {row["name"].removesuffix(" math+code"): row for row in built["rows"]}


def test_front_gain_and_ranking():
    built, rows = report({"linear": (0.5, 0.5), "task_arithmetic": (0.4, 0.4), "ties": (0.55, 0.3)})
    assert {name for name, row in rows.items() if row["on_front"]} == {"math", "code", "linear", "ties"}
    # the square 0.5 x 0.5 less what base and experts cover of it: 0.2 x 0.2, and the strips 0.5 x 0.1 beside it
    covered = 0.5 * 0.1 + 0.1 * 0.5 - 0.1 * 0.1 + (0.2 * 0.2 - (0.2 * 0.1 + 0.1 * 0.2 - 0.1 * 0.1))
    assert rows["linear"]["hypervolume_gain"] == pytest.approx((0.25 - covered) ** 0.5)
    assert rows["base"]["hypervolume_gain"] is None
    assert built["ranking"] == ["linear math+code", "ties math+code"]


def test_requirements_keep_a_front_member_out_and_say_why():
    built, rows = report({"linear": (0.24, 0.59), "task_arithmetic": (0.25, 0.55), "ties": (0.5, 0.19)})
    assert rows["linear"]["unmet"] == ["math >= base + 5 (found 24.0, needs >= 25.0)"]
    assert rows["ties"]["unmet"] == ["code >= 20 (found 19.0, needs >= 20.0)"]
    assert rows["task_arithmetic"]["unmet"] == []
    assert built["ranking"] == ["task_arithmetic math+code"]


def test_a_requirement_against_an_expert_is_read_in_points():
    promotion = {"model": "m", "require": ["math >= math - 10"]}
    _, rows = report({"linear": (0.51, 0.1), "task_arithmetic": (0.49, 0.1), "ties": (0.6, 0.1)}, promotion=promotion)
    assert rows["linear"]["unmet"] == []
    assert rows["task_arithmetic"]["unmet"] == ["math >= math - 10 (found 49.0, needs >= 50.0)"]


def test_equal_candidates_are_ranked_by_digest():
    built, rows = report({"linear": (0.5, 0.5), "task_arithmetic": (0.5, 0.5), "ties": (0.5, 0.5)})
    by_digest = sorted(("linear", "task_arithmetic", "ties"), key=lambda name: rows[name]["digest"])
    assert built["ranking"] == [f"{name} math+code" for name in by_digest]


def test_a_candidate_that_an_expert_beats_is_off_the_front_and_gains_nothing():
    built, rows = report({"linear": (0.6, 0.1), "task_arithmetic": (0.59, 0.1), "ties": (0.1, 0.1)})
    assert not rows["task_arithmetic"]["on_front"]
    assert rows["task_arithmetic"]["hypervolume_gain"] == 0
    assert rows["linear"]["on_front"]
    assert built["champion"] is None


def test_a_response_length_to_minimise_counts_against_the_longest_input():
    objectives = {"math": "maximise", "math.response_tokens": "minimise"}
    lengths = {"base": 10, "math": 40, "code": 10, "linear": 20, "task_arithmetic": 50, "ties": 40}
    tokens = {name: (length, None) for name, length in lengths.items()}
    _, rows = report(
        {"linear": (0.5, 0), "task_arithmetic": (0.5, 0), "ties": (0.7, 0)},
        tokens=tokens,
        objectives=objectives,
        promotion={"model": "m", "require": ["math.response_tokens <= 45"]},
    )
    # linear: 0.5 x (1 - 20/40), of which base covers 0.2 wide; task_arithmetic is longer than the worst input
    assert rows["linear"]["hypervolume_gain"] == pytest.approx((0.5 * 0.5 - 0.2 * 0.5) ** 0.5)
    assert rows["task_arithmetic"]["hypervolume_gain"] == 0
    assert rows["task_arithmetic"]["unmet"] == ["math.response_tokens <= 45 (found 50.0, needs <= 45.0)"]
    assert rows["ties"]["on_front"]


LONG_TO_SHORT = {
    "objectives": {"math": "maximise", "math.response_tokens": "minimise", "code.response_tokens": "minimise"},
    "promotion": None,
}


@pytest.mark.parametrize(("named", "reference"), [({}, "math"), ({"length_reference": "base"}, "base")])
def test_length_changes_against_the_longest_expert_or_the_model_that_the_study_names(named, reference):
    tokens = {"base": (50, 100), "math": (40, 10), "code": (8, 40), "linear": (20, 10), "task_arithmetic": (10, 0)}
    built, rows = report(
        {"linear": (0.5, 0), "task_arithmetic": (0.5, 0), "ties": (0.7, 0)},
        tokens={**tokens, "ties": (0, 0)},
        **LONG_TO_SHORT,
        **named,
    )
    assert built["length_reference"] == reference
    assert rows[reference]["length_change"] == 0
    changes = {
        name: ((math / tokens[reference][0] - 1) + (code / tokens[reference][1] - 1)) / 2
        for name, (math, code) in tokens.items()
    }
    assert {name: rows[name]["length_change"] for name in tokens} == pytest.approx(changes)
    assert rows["ties"]["length_change"] == -1


def test_no_length_change_where_the_reference_answers_nothing_or_lengths_are_no_objective():
    scores = dict.fromkeys(STUDY["methods"], (0.5, 0.5))
    silent = dict.fromkeys([*INPUTS, *STUDY["methods"]], (3, 0))
    for built, rows in [report(scores), report(scores, tokens=silent, **LONG_TO_SHORT)]:
        assert built["length_reference"] is None
        assert {row["length_change"] for row in rows.values()} == {None}


def test_rows_say_what_was_reused():
    _, rows = report(dict.fromkeys(STUDY["methods"], (0.5, 0.5)))
    assert all(row["reused"] for row in rows.values())
    _, rows = report(dict.fromkeys(STUDY["methods"], (0.5, 0.5)), missing=[rows["ties"]["digest"], "base" * 8])
    assert {name for name, row in rows.items() if not row["reused"]} == {"ties", "base"}


def test_what_could_not_be_made_has_no_row_and_is_named():
    built, rows = report({"linear": (0.5, 0.5), "task_arithmetic": (0.4, 0.4)}, not_made={"ties math+code": "overflow"})
    assert rows.keys() == {*INPUTS, "linear", "task_arithmetic"}
    assert built["ranking"] == ["linear math+code"]
    assert not_made_lines(built) == ["not made: ties math+code: overflow"]
