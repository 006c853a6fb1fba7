"""The merge step: every candidate published as it is made, one that cannot be made left out, kills gone on from."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from merging import engine
from merging.digest import model_files
from merging.errors import InputError, TransientError
from operators.hooks.object_store import ObjectStore
from operators.merge import MergeOperator, held, named_models, not_made, workplace


@pytest.fixture(autouse=True)
def without_generating(monkeypatch):
    """Leave out loading the results in transformers."""
    monkeypatch.setattr("merging.postflight.check_generates", lambda folder: None)


@pytest.fixture
def scaled():
    """`scaled()` is a method of which no other test has made a candidate; the bucket is the whole session's."""

    def method(name="task_arithmetic"):
        return {"merge_method": name, "parameters": {"lambda": round(0.1 + uuid.uuid4().int % 10**9 / 2e9, 10)}}

    return method


OVERFLOW = {"merge_method": "task_arithmetic", "parameters": {"lambda": 1e39}}


def work(store, plan):
    return MergeOperator(task_id="merge", plan="", member="math+code").work(store, plan, {})


def leavings(store):
    return list((store.cache / "merging").iterdir())


def test_what_cannot_be_made_is_left_out_and_named(store, make_plan, scaled, caplog):
    plan = make_plan([scaled(), OVERFLOW, scaled("ties")])
    good, bad, other = plan.candidates
    with caplog.at_level(logging.WARNING):
        assert work(store, plan) == [good.name, other.name]
    [(name, reason)] = not_made(store, plan).items()
    assert name == bad.name
    assert reason.startswith("tensor lm_head.weight holds NaN or Inf: the merge overflowed")
    assert reason.endswith(" more)")
    assert f"not made: {name}: {reason}" in caplog.text
    assert store.manifest("models", bad.digest) is None
    for one in (good, other):
        manifest = store.manifest("models", one.digest)
        assert manifest["files"].keys() >= {"model.safetensors", "README.md", "tokenizer.json"}
        assert manifest["recipe"] == one.recipe
        assert set(manifest["inputs"]) == {"the/base", "the/math", "the/code"}
        assert model_files(store.cache / "models" / one.digest).items() <= manifest["files"].items()
    assert leavings(store) == []


def test_a_candidate_is_published_before_the_next_is_finished(store, make_plan, scaled, monkeypatch):
    plan = make_plan([scaled(), scaled()])
    first, second = plan.candidates
    there = []
    finish = engine.finish

    def watched(*arguments):
        there.append([store.manifest("models", one.digest) is not None for one in (first, second)])
        return finish(*arguments)

    monkeypatch.setattr(engine, "finish", watched)
    work(store, plan)
    assert there == [[False, False], [True, False]]


def test_a_damaged_input_fails_the_step_and_is_named_as_the_study_does(store, make_plan, scaled, monkeypatch):
    def refuse(*arguments):
        raise InputError(f"{store.cache / 'models' / plan.model('math').digest}: tensor x holds NaN or Inf")

    plan = make_plan([scaled()])
    monkeypatch.setattr(engine, "write_weights", refuse)
    with pytest.raises(InputError, match="^the/math: tensor x holds NaN or Inf$"):
        work(store, plan)
    assert leavings(store) == []


def test_an_upload_that_fails_is_gone_on_with_without_merging_again(store, make_plan, scaled, monkeypatch):
    plan = make_plan([scaled()])
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "write_json", broken)
        with pytest.raises(TransientError, match="no answer"):
            work(store, plan)
    assert store.manifest("models", plan.candidates[0].digest) is None
    monkeypatch.setattr(engine, "write_weights", None)
    assert work(store, plan) == [plan.candidates[0].name]
    assert store.manifest("models", plan.candidates[0].digest)["delta_norms"]
    assert leavings(store) == []


def broken(*arguments, **keys):
    raise TransientError("no answer")


def test_a_checkpoint_nothing_is_noted_of_is_made_again(store, make_plan, scaled):
    plan = make_plan([scaled()])
    left = workplace(store, plan, plan.candidates[0]) / "model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"who knows")
    work(store, plan)
    assert store.manifest("models", plan.candidates[0].digest)["files"]["model.safetensors"]["size"] > 1_000_000


def test_of_two_at_once_the_second_waits_and_makes_nothing(store, make_plan, scaled, monkeypatch):
    plan = make_plan([scaled()])
    merged = []
    monkeypatch.setattr(engine, "merge_many", lambda *arguments, **keys: merged.append(arguments))
    other = ObjectStore(store.client, store.bucket, store.cache)
    found = {}
    second = threading.Thread(target=lambda: found.update(names=work(other, plan)))
    with held([workplace(store, plan, plan.candidates[0])]):
        second.start()
        second.join(1)
        assert second.is_alive()
        assert merged == []
        made_meanwhile = {"digest": plan.candidates[0].digest, "files": {}}
        store.write_json(f"models/{plan.candidates[0].digest}/manifest.json", made_meanwhile)
    second.join(60)
    assert found == {"names": [plan.candidates[0].name]}
    assert merged == []


def test_a_forced_run_takes_over_nothing_of_another(store, make_plan, scaled):
    method = scaled()
    places = [
        workplace(store, plan, plan.candidates[0])
        for plan in (
            make_plan([method]),
            make_plan([method], run="run-2"),
            make_plan([method], force=True),
            make_plan([method], run="run-2", force=True),
        )
    ]
    assert places[0] == places[1]
    assert len(set(places)) == 3


KILLED = """
import json, os, signal, sys
from pathlib import Path
import operators.merge
from evaluation.plan import StudyPlan
from merging import postflight
from operators.hooks.object_store import ObjectStore
import boto3

connection, bucket, cache, plan, after = json.loads(sys.argv[1])
postflight.check_generates = lambda folder: None
operators.merge.SHARD_SIZE = 300_000

def progress():
    def told(done, total, name):
        if done == after:
            os.kill(os.getpid(), signal.SIGKILL)
    return told

operators.merge.log_lines = progress
store = ObjectStore(boto3.client("s3", **connection), bucket, Path(cache))
operator = operators.merge.MergeOperator(task_id="merge", plan="", member="math+code")
operator.work(store, StudyPlan.model_validate(plan), {})
"""


def test_a_killed_step_goes_on_from_its_finished_shards(store, object_store, make_plan, scaled, tmp_path, monkeypatch):
    monkeypatch.setattr("operators.merge.SHARD_SIZE", 300_000)
    plan = make_plan([scaled(), scaled("ties")])
    connection = {
        "endpoint_url": object_store.endpoint,
        "aws_access_key_id": object_store.key,
        "aws_secret_access_key": object_store.secret,
        "region_name": "us-east-1",
    }
    after = [connection, store.bucket, str(store.cache), plan.model_dump(mode="json"), 70]
    killed = subprocess.run([sys.executable, "-c", KILLED, json.dumps(after)], cwd=Path.cwd(), timeout=300)
    assert killed.returncode == -signal.SIGKILL
    finished = files(store.cache.glob("merging/*/model.partial/*.safetensors"))
    assert len(finished) >= 4

    work(store, plan)
    assert finished <= files(store.cache.glob("models/*/model-*.safetensors"))
    assert leavings(store) == []

    straight = ObjectStore(store.client, store.bucket, tmp_path / "straight")
    work(straight, plan.model_copy(update={"force": True}))
    for one in plan.candidates:
        folders = [cache / "models" / one.digest for cache in (store.cache, straight.cache)]
        assert model_files(folders[0]) == model_files(folders[1])


def files(paths):
    """Which files these are, and when they were written."""
    return {(stat.st_ino, stat.st_mtime_ns) for stat in map(os.stat, paths)}


def test_a_cached_folder_is_shown_as_the_model_it_holds():
    with (
        pytest.raises(InputError) as caught,
        named_models({"org/math@1": Path("/cache/models/ab"), "../base": Path("/cache/models/cd")}),
    ):
        raise InputError(["/cache/models/ab: tensor x holds NaN", "/cache/models/cd: and this"])
    assert caught.value.problems == ["org/math@1: tensor x holds NaN", "../base: and this"]
