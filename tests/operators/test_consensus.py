"""ACM's steps of a study: experts and plain merges are measured once, then scaled."""

import uuid
from pathlib import Path

import pytest

from evaluation.planning import plan_study
from evaluation.study import Study
from merging import consensus
from merging.acm import Consensus
from merging.digest import file_sha256
from merging.errors import InputError
from operators.calibrate import CalibrateOperator
from operators.consensus import CONSENSUS, ConsensusOperator
from operators.merge import MergeOperator, not_made
from operators.plan import _missing
from tests.operators.conftest import FAMILY


@pytest.fixture(autouse=True)
def without_generating(monkeypatch):
    """Leave out loading the results in transformers."""
    monkeypatch.setattr("merging.postflight.check_generates", lambda folder: None)


@pytest.fixture
def plan(store, make_plan, tmp_path):
    """`plan(informed, method)`: a study with ACM whose models are in the bucket; nothing of it is made yet."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "{"1 + " * n}{uuid.uuid4().int % 99}"}}\n' for n in (1, 4, 9)))
    sha256 = file_sha256(texts)

    def make(informed, methods):
        models = make_plan(methods).models
        study = Study.parse(
            {
                "name": "small",
                "base": str(FAMILY / "base"),
                "experts": {name: str(FAMILY / name) for name in ("math", "code")},
                "methods": methods,
                "informed": informed,
                "calibration": {"texts": str(texts)},
                "benchmarks": {"math": {"task": "tiny_math"}},
                "objectives": {"math": "maximise"},
            },
            folder=Path("."),
        )
        store.upload(f"texts/{sha256}.jsonl", texts)
        resolved = {one.name: {"digest": one.digest, "reference": one.reference} for one in models}
        found = plan_study(study, uuid.uuid4().hex, resolved, texts={"sha256": sha256})
        return found.model_copy(update={"missing": frozenset(_missing(store, found))})

    return make


def merge(store, plan, scaled=False):
    return MergeOperator(task_id="merge", plan="", member="math+code", scaled=scaled).work(store, plan, {})


def compare(store, plan):
    ConsensusOperator(task_id="compare", plan="", member="math+code").work(store, plan, {})


def calibrate(store, plan):
    for name in plan.to_calibrate():
        CalibrateOperator(task_id="calibrate", plan="", member=name).work(store, plan, {})


def consensus_of(store, plan, name):
    return Consensus.load(store.local("calibrations", plan.consensus_of(name).digest) / CONSENSUS)


def test_experts_are_measured_and_task_arithmetic_is_made_with_them(store, plan):
    planned = plan(["acm", "acm_uniform"], ["task_arithmetic"])
    assert planned.to_calibrate() == ["math", "code"]
    calibrate(store, planned)
    found = consensus_of(store, planned, "math")
    assert (found.base, found.against) == (planned.model("base").digest, planned.model("math").digest)
    assert merge(store, planned) == [one.name for one in planned.candidates]
    manifest = store.manifest("models", planned.candidates[0].digest)
    assert set(manifest["lambdas"]) == {"the/math", "the/code"}
    assert manifest["lengths"]["samples"] == 3
    assert manifest["consensus"] == planned.candidates[0].consensus


def test_other_methods_are_made_plain_measured_and_scaled(store, plan, monkeypatch):
    planned = plan(["acm", {"acm_shuffled": {"t": [0.7, 2]}}], ["linear"])
    [stage] = planned.stages
    assert merge(store, planned) == []
    assert store.manifest("models", stage.digest)
    compare(store, planned)
    assert consensus_of(store, planned, stage.name).against == stage.digest
    assert merge(store, planned, scaled=True) == [one.name for one in planned.candidates]
    assert all(store.manifest("models", one.digest)["lambdas"]["merged"] for one in planned.candidates)
    # with all of that there, another t needs nothing but its own merge
    monkeypatch.setattr(consensus, "measure", None)
    later = plan(["acm", {"acm": {"t": 1.5}}], ["linear"])
    assert later.to_calibrate() == later.to_compare("math+code") == later.to_merge("math+code", scaled=False) == []
    merge(store, later)
    compare(store, later)
    merge(store, later, scaled=True)
    assert store.manifest("models", later.member("linear+acm(t=1.5) math+code").digest)


def test_what_has_no_plain_merge_is_left_out_and_named(store, plan):
    planned = plan(["plain", "acm"], ["linear", {"merge_method": "ties", "parameters": {"lambda": 1e39}}])
    good, good_acm, bad, bad_acm = (one.name for one in planned.candidates)
    assert merge(store, planned) == [good]
    compare(store, planned)
    assert merge(store, planned, scaled=True) == [good_acm]
    found = not_made(store, planned)
    assert set(found) == {bad, bad_acm}
    assert found[bad_acm].startswith("its plain merge could not be made: tensor ")


def test_what_cannot_be_measured_fails_the_step(store, plan, monkeypatch):
    def refuse(*_, **__):
        raise InputError("the output of lm_head is NaN")

    planned = plan(["acm"], ["task_arithmetic"])
    monkeypatch.setattr(consensus, "measure", refuse)
    with pytest.raises(InputError, match="is NaN"):
        calibrate(store, planned)
    assert store.manifest("calibrations", planned.consensus_of("math").digest) is None
