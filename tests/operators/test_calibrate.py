"""The calibrate step: what a killed task measured is gone on from, and a worker keeps nothing once it is published."""

import json
import uuid

import pytest

from merging import calibration
from merging.digest import file_sha256
from merging.errors import TransientError
from merging.tensor_file import load_tensors
from operators.calibrate import STATISTICS, CalibrateOperator
from tests.operators.conftest import FAMILY


@pytest.fixture
def plan(store, make_plan, tmp_path):
    """The plan of a study with AIM whose base and texts are in the bucket."""
    from evaluation.plan import PlannedCalibration
    from merging.digest import calibration_digest

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{n} + {uuid.uuid4().int % 99}"}) + "\n" for n in range(20)))
    sha256 = file_sha256(texts)
    store.upload(f"texts/{sha256}.jsonl", texts)
    made = make_plan(["linear"])
    digest = calibration_digest(made.model("base").digest, sha256, 30, 16)
    wanted = PlannedCalibration(digest=digest, texts={"sha256": sha256}, samples=30, block=16)
    return made.model_copy(update={"calibration": wanted})


def calibrate(store, plan) -> str:
    return CalibrateOperator(task_id="calibrate", plan="", member="base").work(store, plan, {})


def test_a_task_that_ended_early_is_gone_on_from(store, plan, monkeypatch, caplog):
    real, told = calibration.calibrate, []

    def ends_early(*arguments, progress, **options):
        def report(done, total, label):
            told.append(done)
            if done == total // 2:
                raise TransientError("the worker went away")

        real(*arguments, progress=report, **options)

    monkeypatch.setattr(calibration, "calibrate", ends_early)
    with pytest.raises(TransientError, match="the worker went away"):
        calibrate(store, plan)
    assert store.manifest("calibrations", plan.calibration.digest) is None
    half = len(told)

    def goes_on(*arguments, progress, **options):
        real(*arguments, progress=lambda done, *_: told.append(done), **options)

    monkeypatch.setattr(calibration, "calibrate", goes_on)
    address = calibrate(store, plan)
    assert told[half] > 1
    assert "the texts ended after 20 that can be used, of 30 wanted" in caplog.text
    assert address == store.uri("calibrations", plan.calibration.digest)
    assert list((store.cache / "calibrating").iterdir()) == []
    assert calibrate(store, plan) == address
    assert told[-1] == max(told)


def test_what_is_published_is_what_the_file_says(store, plan):
    calibrate(store, plan)
    vectors, about = load_tensors(store.local("calibrations", plan.calibration.digest) / STATISTICS)
    assert about["model"] == plan.model("base").digest
    assert about["calibration"] == plan.calibration.digest
    assert about["samples"] == "20"
    names = load_tensors(FAMILY / "base" / "model.safetensors")[0]
    assert {f"{module}.weight" for module in vectors} <= {*names, "lm_head.weight"}
