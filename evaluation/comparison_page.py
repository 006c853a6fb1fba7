"""Did informing a merge help? One study's part of the report, in Markdown; every sentence follows from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from evaluation.comparison import (
    BY_CHANCE,
    LIMIT,
    Comparison,
    Estimate,
    Finding,
    Samples,
    comparisons,
    findings,
    groups,
    mean,
    per_question,
)
from evaluation.front_view import Axis, Row, axes

NAMES = {
    "plain": "plain",
    "aim": "AIM",
    "acm": "ACM",
    "acm_uniform": "ACM's mean lambda everywhere (uniform)",
    "acm_shuffled": "ACM's lambdas shuffled",
}
SHORT = NAMES | {"acm_uniform": "uniform", "acm_shuffled": "shuffled"}
WORDS = {1: "better", -1: "worse", 0: "no difference shown"}


def study_page(report: Mapping[str, Any], samples: Samples, acm: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """A study's findings, pictures (by caption, where they lie) and tables.

    `acm` holds by ACM candidate {"lambdas": by measured model and module, "lengths": statistics of the texts}.
    """
    compared = comparisons(report, samples)
    every = axes(report["objectives"])
    parts = [f"## `{report['study']}`", _asked(report, samples), "### What holds and what does not"]
    parts += [_findings_table(findings(compared)), _sentences(compared, findings(compared), acm)]
    parts += [f"![{caption}]({file})" for caption, file in pictures.items()]
    parts += ["### The models that were merged", _scores(_inputs(report), every, samples, report)]
    for group in groups(report["rows"]):
        own = [one for one in compared if one.group == group.name]
        parts += [f"### {group.name}", _scores(group.rows, every, samples, report), _differences(own, every)]
    parts += _lambda_table(acm)
    return "\n\n".join(parts) + "\n"


def label(row: Row) -> str:
    """A row by the way it was informed: `AIM, omega 0.4`; an input model by its name."""
    if row["kind"] != "candidate":
        return row["name"] if row["kind"] == row["name"] else f"{row['name']} ({row['kind']})"
    if row["omega"] is not None:
        return f"{NAMES[row['informed']]}, omega {row['omega']:g}"
    return NAMES[row["informed"]] + ("" if row["t"] is None else f", t {row['t']:g}")


def pair_label(pair: tuple[str, str]) -> str:
    return f"{SHORT[pair[0]]} - {SHORT[pair[1]]}"


def _asked(report: Mapping[str, Any], samples: Samples) -> str:
    asked = {name: len(rows) for name, rows in next(iter(samples.values())).items()}
    told = ", ".join(f"{name} {count}" for name, count in asked.items())
    left_out = "".join(f"\nNot made: {name}: {reason}." for name, reason in report["not_made"].items())
    return f"Questions of each benchmark: {told}. Every model answered the same ones.{left_out}"


def _inputs(report: Mapping[str, Any]) -> list[Row]:
    return [row for row in report["rows"] if row["kind"] != "candidate"]


def _scores(rows: Sequence[Row], every: Sequence[Axis], samples: Samples, report: Mapping[str, Any]) -> str:
    reference = report["length_reference"]
    head = ["", *(axis.title for axis in every), "hypervolume gain"]
    head += [f"length change against {reference}"] if reference else []
    lines = []
    for row in rows:
        answers = samples[row["name"]]
        cells = [_plus_minus(mean(per_question(answers[axis.benchmark], axis).values())) for axis in every]
        gain = row["hypervolume_gain"]
        cells += ["" if gain is None else f"{gain:.3f}"]
        cells += [f"{100 * row['length_change']:+.1f} %"] if reference else []
        lines.append([label(row), *cells])
    return _table(head, lines)


def _differences(compared: Sequence[Comparison], every: Sequence[Axis]) -> str:
    found: dict[tuple[str, str], dict[str, str]] = {}
    for one in compared:
        named = found.setdefault((one.what["name"], one.against["name"]), {"": pair_label(one.pair)})
        text = _plus_minus(one.estimate, sign=True)
        named[one.axis.name] = f"**{text}**" if one.estimate.differs else text
    head = ["difference, question by question", *(axis.title for axis in every)]
    return _table(head, [[cells[""], *(cells[axis.name] for axis in every)] for cells in found.values()])


def _findings_table(found: Sequence[Finding]) -> str:
    head = ["", "measure", "better", "worse", "of", "by chance", "on average", "so on average"]
    lines = [
        [
            pair_label(one.pair),
            "length (tokens)" if one.is_length else "score (points)",
            str(one.better),
            str(one.worse),
            str(one.count),
            f"{BY_CHANCE * one.count:.1f}",
            _plus_minus(one.average, sign=True),
            WORDS[one.verdict],
        ]
        for one in found
    ]
    return _table(head, lines)


def _sentences(compared: Sequence[Comparison], found: Sequence[Finding], acm: Mapping[str, Any]) -> str:
    """What the table of findings says, in words."""
    differ = sum(one.estimate.differs for one in compared)
    sentences = [
        f"{differ} of {len(compared)} comparisons differ by more than {LIMIT} standard errors; of equal models, "
        f"{BY_CHANCE * len(compared):.1f} would.",
        *map(_sentence, found),
    ]
    if lambdas := [value for one in acm.values() for found in one["lambdas"].values() for value in found.values()]:
        sentences.append(f"ACM's lambdas all lie between {min(lambdas):.3f} and {max(lambdas):.3f}.")
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _sentence(one: Finding) -> str:
    what, against = (SHORT[name] for name in one.pair)
    measure, unit = ("length", "tokens") if one.is_length else ("score", "points")
    if not one.verdict:
        text = f"Between {what} and {against}, no difference in {measure} shows on average"
        text += f" ({_plus_minus(one.average, sign=True)} {unit})"
        if one.better + one.worse > BY_CHANCE * one.count:
            text += f", though {one.better} of {one.count} comparisons are better and {one.worse} worse"
        return text + "."
    opposed = one.worse if one.verdict > 0 else one.better
    higher, lower = ("longer", "shorter") if one.is_length else ("higher", "lower")
    size = _plus_minus(Estimate(abs(one.average.value), one.average.stderr))
    text = f"**{what}'s {measure} is {higher if one.average.value > 0 else lower} than {against}'s**"
    text += f" by {size} {unit} on average"
    return text + (f"; in {opposed} of {one.count} comparisons it is the other way round." if opposed else ".")


def _lambda_table(acm: Mapping[str, Any]) -> list[str]:
    """How far the lambdas of each ACM candidate spread, and how long the texts were that they rest on."""
    lines, told = [], []
    for candidate, one in acm.items():
        for measured, lambdas in one["lambdas"].items():
            values = list(lambdas.values())
            lines.append([candidate, measured, *(f"{each:.3f}" for each in (min(values), fmean(values), max(values)))])
        told.append(", ".join(f"{name} {value:.4g}" for name, value in one["lengths"].items()))
    if not lines:
        return []
    lengths = "\n".join(f"Tokens of the calibration texts: {line}." for line in dict.fromkeys(told))
    return ["### ACM's lambdas", _table(["", "measured against the base", "least", "mean", "most"], lines), lengths]


def _plus_minus(one: Estimate, *, sign: bool = False) -> str:
    return f"{one.value:+.1f} ± {one.stderr:.1f}" if sign else f"{one.value:.1f} ± {one.stderr:.1f}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---", *("---:" for _ in head[1:])], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
