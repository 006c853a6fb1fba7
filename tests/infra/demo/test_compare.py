"""The report on what activations add, read from runs in a real bucket."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.planning import plan_study
from evaluation.report import build_report
from evaluation.study import Study
from infra.demo.compare import last_run, main, write_report
from merging.errors import InputError
from operators.hooks.object_store import ObjectStore

QUESTIONS = 20


@pytest.fixture
def store(object_store, tmp_path):
    return ObjectStore(object_store.client(), object_store.bucket, cache=tmp_path / "cache")


def finish_run(store, name, run, informed, right, folder):
    """A finished run, as the steps leave it; `right` of the questions were answered rightly by all models."""
    study = Study.parse(
        {
            "name": name,
            "base": "the/base",
            "experts": {"math": "the/math", "code": "the/code"},
            "methods": ["ties"],
            "informed": informed,
            "calibration": {"texts": "texts.jsonl"},
            "benchmarks": {"math": {"task": "tiny_math", "seed": right}},
            "objectives": {"math": "maximise"},
        },
        folder=Path("."),
    )
    resolved = {one: {"digest": f"{name}-{run}-{one}", "reference": f"the/{one}"} for one in study.sources}
    plan = plan_study(study, run, resolved, texts={"sha256": "0"})
    scores = {}
    for member in [*plan.models, *plan.candidates]:
        [digest] = member.scores.values()
        scores[digest] = {"value": right / QUESTIONS, "stderr": 0.1, "response_tokens": 2.0}
        lines = [
            {"task": "tiny_math", "question": number, "correct": float(number < right), "response_tokens": 2.0}
            for number in range(QUESTIONS)
        ]
        made = folder / digest
        made.mkdir(parents=True, exist_ok=True)
        (made / "samples-0.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        store.publish("scores", digest, made, {"score": scores[digest]})
        if member.kind == "candidate" and member.informed == "acm":
            about = {"lambdas": {"the/math": {"model.norm": 0.6}}, "lengths": {"samples": 3}}
            empty = folder / "empty"
            empty.mkdir(exist_ok=True)
            store.publish("models", member.digest, empty, about)
    store.write_json(f"studies/{name}/{run}/plan.json", plan.model_dump(mode="json"))
    store.write_json(f"studies/{name}/{run}/report.json", build_report(plan, scores))


def test_the_report_is_of_the_last_finished_run(store, tmp_path):
    ways = ["plain", "aim", "acm", "acm_uniform", "acm_shuffled"]
    finish_run(store, "told", "b-first", ways, 5, tmp_path / "first")
    finish_run(store, "told", "a-second", ways, 8, tmp_path / "second")
    store.write_json("studies/told/c-unfinished/plan.json", {})
    run = last_run(store, "told")
    assert run.report["run"] == "a-second"
    assert {sum(one["correct"] for one in found["math"]) for found in run.samples.values()} == {8.0}
    assert [*run.acm.values()] == [{"lambdas": {"math": {"model.norm": 0.6}}, "lengths": {"samples": 3}}]

    written = write_report([run, replace(run, report={**run.report, "study": "other"})], tmp_path / "docs" / "page.md")
    names = {
        "page.md",
        *(f"page-{study}-{what}.png" for study in ("told", "other") for what in ("scores", "differences")),
    }
    assert {path.name for path in written} == names == {path.name for path in (tmp_path / "docs").iterdir()}
    page = written[0].read_text()
    assert '    make demo STUDY=told\n    make demo STUDY=other\n    make report STUDIES="told other"\n' in page
    assert "Questions of each benchmark: math 20." in page
    assert "0 of 5 comparisons differ by more than 2 standard errors" in page
    assert page.count("](page-") == 4


def test_what_cannot_be_told_is_said(store, tmp_path):
    with pytest.raises(InputError, match="study untried: no run of it has finished; run it first: make demo STUDY="):
        last_run(store, "untried")
    finish_run(store, "bare", "run", ["aim"], 5, tmp_path / "bare")
    with pytest.raises(InputError, match="study bare: it has no plain merge to compare others with"):
        last_run(store, "bare")


def test_a_home_without_runs_is_a_users_mistake(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MERGEFLOW_HOME", str(tmp_path / "nowhere"))
    assert main(["tiny_informed", "--out", str(tmp_path / "page.md")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nowhere'}: there is nothing to report on")
    assert [*tmp_path.iterdir()] == []
