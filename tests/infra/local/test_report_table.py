"""The table that a demo ends with, and its last line."""

import io
import re

import pytest
from rich.console import Console

from infra.local.report_table import print_report, summary
from infra.local.settings import Settings


def row(name, kind="candidate", math=0.5, **values):
    return {
        "name": name,
        "kind": kind,
        "method": "ties",
        "informed": "plain",
        "scores": {"math": {"value": math, "stderr": 0.031, "response_tokens": 17.25}},
        "on_front": False,
        "hypervolume_gain": None,
        "length_change": -0.25,
        "digest": "0" * 64,
        "reused": False,
        "version": None,
        "mlflow_run": "r",
        **values,
    }


@pytest.fixture
def report():
    best = row("ties(d=0.5) math+code", math=0.612, on_front=True, hypervolume_gain=0.125, version=3)
    return {
        "study": "tiny",
        "run": "manual__1",
        "objectives": [{"name": "math", "goal": "maximise"}, {"name": "math.response_tokens", "goal": "minimise"}],
        "length_reference": "math",
        "rows": [row("base", "base", on_front=True), row("linear [a] code"), best],
        "champion": {"name": best["name"], "version": 3},
        "challenger": None,
        "model": "tiny-merge",
        "not_made": {},
        "reused": {"fetch": 4, "calibrate": 0, "merge": 1, "benchmark": 0},
        "mlflow_url": "http://127.0.0.1:5000/#/experiments/1/runs",
    }


def printed(report, tmp_path) -> list[str]:
    text = io.StringIO()
    print_report(report, Settings(home=tmp_path), Console(file=text, width=160))
    return text.getvalue().splitlines()


def test_the_last_line_counts_candidates_only(report):
    assert summary(report) == ("study tiny: 2 candidates, 1 on the front, champion ties(d=0.5) math+code (version 3)")


def test_without_a_champion_the_last_line_says_so(report):
    assert summary(report | {"champion": None}) == "study tiny: 2 candidates, 1 on the front, no champion"


def test_the_front_comes_first_and_the_models_merged_last(report, tmp_path):
    lines = printed(report, tmp_path)
    rows = [line for line in lines if "±" in line and not line.startswith("Study")]
    assert [re.split(r"\s{2,}", row.strip())[0] for row in rows] == ["ties(d=0.5) math+code", "linear [a] code", "base"]
    assert re.split(r"\s{2,}", rows[0].strip())[1:] == [
        "61.2 ± 3.1", "17.2", "-25.0 %", "yes", "0.1250", "version 3 (champion)",
    ]  # fmt: skip
    assert "length: of the responses, against math's." in " ".join(" ".join(lines).split())


def test_without_lengths_there_is_no_length_change(report, tmp_path):
    report |= {"objectives": report["objectives"][:1], "length_reference": None}
    lines = printed(report, tmp_path)
    assert not [line for line in lines if " length" in line or "25.0 %" in line]


def test_what_was_taken_over_is_counted(report, tmp_path):
    assert "Taken over from earlier runs: fetch 4, merge 1" in printed(report, tmp_path)
    report["reused"] = {"fetch": 0}
    assert "Nothing was there from earlier runs: everything was computed." in printed(report, tmp_path)


def test_what_could_not_be_made_stands_under_the_table(report, tmp_path):
    report["not_made"] = {"ties(d=0.5) [math]": "its weights overflowed"}
    lines = printed(report, tmp_path)
    assert "not made: ties(d=0.5) [math]: its weights overflowed" in lines
