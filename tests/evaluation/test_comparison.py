"""Candidates against each other, question by question: the numbers, the words and the pictures made of them."""

import random
from statistics import NormalDist

import numpy as np
import pytest
from matplotlib.figure import Figure

from evaluation.comparison import BY_CHANCE, LIMIT, Estimate, comparisons, findings, groups, mean, pooled
from evaluation.comparison_page import study_page
from evaluation.comparison_png import differences_png, scores_png
from merging.errors import InputError

QUESTIONS = 40
WAYS = {"plain": None, "aim": None, "acm": 0.7, "acm_uniform": 0.7, "acm_shuffled": 0.7}


def row(method, way, parameters, **changes):
    name = f"{method}+{way}{parameters or ''} a+b"
    return {
        "name": name,
        "kind": "candidate",
        "method": method,
        "parameters": parameters,
        "combination": ["a", "b"],
        "informed": way,
        "omega": 0.4 if way == "aim" else None,
        "t": WAYS[way],
        "hypervolume_gain": 0.1,
        "length_change": -0.25,
        "scores": {"sums": {"value": 0.5, "stderr": 0.1, "response_tokens": 9.0}},
        **changes,
    }


def answers(correct, tokens):
    return [
        {"task": "tiny_sums", "question": number, "correct": float(right), "response_tokens": float(count)}
        for number, (right, count) in enumerate(zip(correct, tokens, strict=True))
    ]


def rows_of(method, parameters):
    bare = {} if method == "task_arithmetic" else parameters
    return [row(method, way, parameters if t is None else bare) for way, t in WAYS.items()]


@pytest.fixture
def report():
    inputs = [
        {**row("none", "plain", {}), "name": name, "kind": kind} for name, kind in (("base",) * 2, ("a", "expert"))
    ]
    for one in inputs:
        one["hypervolume_gain"] = None
    return {
        "study": "small",
        "objectives": [{"name": "sums", "goal": "maximise"}, {"name": "sums.response_tokens", "goal": "minimise"}],
        "length_reference": "a",
        "not_made": {},
        "rows": [*inputs, *rows_of("task_arithmetic", {"lambda": 0.7}), *rows_of("ties", {"density": 0.5})],
    }


@pytest.fixture
def samples(report):
    """Chance answers; but AIM is always right and brief where plain is not, and ACM answers as its uniform control."""
    chance = random.Random(3)
    found = {}
    for one in report["rows"]:
        correct = [chance.random() < 0.4 for _ in range(QUESTIONS)]
        found[one["name"]] = {"sums": answers(correct, [chance.randint(8, 12) for _ in range(QUESTIONS)])}
    for one in report["rows"]:
        if one["kind"] == "candidate" and one["informed"] == "aim":
            found[one["name"]] = {"sums": answers([True] * QUESTIONS, [3] * QUESTIONS)}
        if one["kind"] == "candidate" and one["informed"] == "acm":
            found[one["name"]] = found[one["name"].replace("+acm", "+acm_uniform")]
    return found


def values(samples, name, key):
    return np.array([one[key] for one in samples[name]["sums"]])


def test_a_mean_and_its_error_are_numpys():
    values = [random.Random(1).gauss(0, 1) for _ in range(50)]
    expected = np.std(values, ddof=1) / np.sqrt(50)
    assert mean(values) == Estimate(pytest.approx(np.mean(values)), pytest.approx(expected))
    with pytest.raises(InputError, match="two questions or more, found 1"):
        mean([1.0])


def test_a_difference_is_beyond_the_limit_or_not():
    assert Estimate(-2.1, 1).differs
    assert not Estimate(2.0, 1).differs
    assert not Estimate(0, 0).differs
    assert pytest.approx(2 * NormalDist().cdf(-LIMIT)) == BY_CHANCE


def test_acm_of_task_arithmetic_belongs_to_every_plain_merge(report):
    report["rows"] += [row("task_arithmetic", "plain", {"lambda": 1.0}), row("ties", "aim", {"density": 0.2})]
    found = {group.name: [one["informed"] for one in group.rows] for group in groups(report["rows"])}
    assert found["task_arithmetic+plain{'lambda': 0.7} a+b"] == [*WAYS]
    assert found["task_arithmetic+plain{'lambda': 1.0} a+b"] == ["plain", "acm", "acm_uniform", "acm_shuffled"]
    assert found["ties+plain{'density': 0.5} a+b"] == [*WAYS]


def test_differences_are_paired_by_question(report, samples):
    """For right and wrong the paired error has a closed form in the numbers of questions that only one got right."""
    name, other = "ties+acm_uniform{'density': 0.5} a+b", "ties+plain{'density': 0.5} a+b"
    ours, theirs = values(samples, name, "correct"), values(samples, other, "correct")
    samples[other]["sums"].reverse()  # the order of the rows says nothing
    found = next(
        one for one in comparisons(report, samples) if (one.what["name"], one.against["name"]) == (name, other)
    )
    gained, lost = ((ours > theirs).sum(), (ours < theirs).sum())
    share = (gained - lost) / QUESTIONS
    error = np.sqrt(((gained + lost) / QUESTIONS - share**2) / (QUESTIONS - 1))
    assert found.estimate == Estimate(pytest.approx(100 * share), pytest.approx(100 * error))


def test_other_questions_are_refused(report, samples):
    samples["ties+plain{'density': 0.5} a+b"]["sums"].pop()
    with pytest.raises(InputError, match=r"sums: .* were asked different questions \(1 of them\)"):
        comparisons(report, samples)


def test_a_score_that_is_no_number_is_refused(report, samples):
    samples["ties+plain{'density': 0.5} a+b"]["sums"][3]["correct"] = [1, 2]
    with pytest.raises(InputError, match="sums: question 3 of tiny_sums has no number"):
        comparisons(report, samples)


def test_acm_meets_the_controls_of_its_own_t_and_nothing_is_counted_twice(report, samples):
    more = [row("ties", way, {"density": 0.5}, t=0.3, name=f"{way} 0.3") for way in ("acm", "acm_uniform")]
    plain = row("task_arithmetic", "plain", {"lambda": 1.0})
    report["rows"] += [*more, plain]
    for one in [*more, plain]:
        samples[one["name"]] = samples["base"]
    found = [
        one for one in comparisons(report, samples) if one.pair == ("acm", "acm_uniform") and not one.axis.is_length
    ]
    assert [(one.what["t"], one.against["t"]) for one in found] == [(0.7, 0.7), (0.7, 0.7), (0.3, 0.3)]


def test_the_average_knows_that_methods_share_questions(report, samples):
    chosen = [one for one in comparisons(report, samples) if one.pair == ("acm_uniform", "plain")]
    lengths = [one for one in chosen if one.axis.is_length]
    table = np.array([[*one.differences.values()] for one in lengths])
    assert table.shape == (2, QUESTIONS)
    by_question = table.mean(axis=0)
    assert pooled(lengths).value == pytest.approx(table.mean())
    assert pooled(lengths).stderr == pytest.approx(by_question.std(ddof=1) / np.sqrt(QUESTIONS))
    twice = pooled([lengths[0], lengths[0]])
    assert twice.stderr == pytest.approx(lengths[0].estimate.stderr)  # not divided by sqrt(2)


def test_the_average_over_benchmarks_adds_their_variances(report, samples):
    scores, lengths = (
        next(
            one for one in comparisons(report, samples) if one.pair == ("aim", "plain") and one.axis.is_length == wanted
        )
        for wanted in (False, True)
    )
    both = pooled([scores, lengths])
    assert both.value == pytest.approx((scores.estimate.value + lengths.estimate.value) / 2)
    assert both.stderr == pytest.approx(np.hypot(scores.estimate.stderr, lengths.estimate.stderr) / 2)


def test_shorter_is_better_and_equal_is_neither(report, samples):
    found = {(one.pair, one.is_length): one for one in findings(comparisons(report, samples))}
    right, brief = found[("aim", "plain"), False], found[("aim", "plain"), True]
    assert (right.better, right.worse, right.count, right.verdict) == (2, 0, 2, 1)
    assert (brief.better, brief.worse, brief.count, brief.verdict) == (2, 0, 2, 1)
    assert brief.average.value < 0
    same = found[("acm", "acm_uniform"), False]
    assert (same.better, same.worse, same.count, same.verdict, same.average) == (0, 0, 2, 0, Estimate(0, 0))


def test_the_page_says_what_the_numbers_say(report, samples):
    acm = {"ties+acm": {"lambdas": {"merged": {"x": 0.5, "y": 0.7}}, "lengths": {"samples": 4, "longest": 23}}}
    page = study_page(report, samples, acm, {"Scores": "scores.png"})
    differ = sum(one.estimate.differs for one in comparisons(report, samples))
    assert f"- {differ} of 20 comparisons differ by more than 2 standard errors; of equal models, 0.9 would." in page
    assert "- **AIM's length is shorter than plain's** by " in page
    assert "- Between ACM and uniform, no difference in score shows on average (+0.0 ± 0.0 points).\n" in page
    assert "| ACM - uniform | score (points) | 0 | 0 | 2 | 0.1 | +0.0 ± 0.0 | no difference shown |" in page
    assert "| AIM, omega 0.4 | 100.0 ± 0.0 | 3.0 ± 0.0 | 0.100 | -25.0 % |" in page
    assert "| ties+acm | merged | 0.500 | 0.600 | 0.700 |" in page
    assert "![Scores](scores.png)" in page


def test_the_pictures_show_every_candidate_and_comparison(report, samples, tmp_path, monkeypatch):
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, path: (drawn.append(one.axes), save(one, path)))
    compared = comparisons(report, samples)
    scores_png(report, samples, tmp_path / "scores.png")
    differences_png(compared, tmp_path / "differences.png")
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("scores", "differences"))
    scores, differences = drawn
    heights = [container.lines[0].get_ydata()[0] for container in scores[0].containers]
    candidates = [one["name"] for one in report["rows"] if one["kind"] == "candidate"]
    assert heights == pytest.approx([100 * values(samples, name, "correct").mean() for name in candidates])
    across = [container.lines[0].get_xdata()[0] for container in differences[1].containers]
    assert across == pytest.approx([one.estimate.value for one in compared if one.axis.is_length])
