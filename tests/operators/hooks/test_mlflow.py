"""MLflow's hook against a real server: what is recorded can be found again, and is recorded once."""

import json
import uuid
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from mlflow import MlflowClient

from merging.errors import InputError, TransientError
from operators.hooks.mlflow import Tracking, Version, tracking


@pytest.fixture(scope="session")
def client(mlflow_server):
    return MlflowClient(mlflow_server)


@pytest.fixture
def track(mlflow_server, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return Tracking(mlflow_server)


@pytest.fixture
def study():
    return f"study-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def experiment(track, study):
    return track.experiment(study)


@pytest.fixture
def parent(track, experiment):
    return track.parent_run(experiment, "manual__2026-01-01T00-00-00", {"airflow.dag_id": "tiny"})


def member(track, parent, name="ties(d=0.5)+aim(w=0.4) math+code", score=0.4, **changes):
    record = {
        "metrics": {"math": score, "math_stderr": 0.03, "math_response_tokens": 6.5, "on_front": 1.0},
        "params": {"method": "ties", "density": 0.5, "informed": "aim", "omega": 0.4, "combination": "math+code"},
        "tags": {"mergeflow.kind": "candidate", "mergeflow.digest": "d1"},
        "artifacts": {},
    }
    return track.log_member(parent, name, **{**record, **changes})


def test_an_experiment_is_made_once_and_restored(track, client, study, experiment):
    assert track.experiment(study) == experiment
    client.delete_experiment(experiment)
    assert track.experiment(study) == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"


def test_a_dag_run_has_one_parent_run(track, client, experiment, parent):
    track.finish(parent, "FINISHED")
    assert client.get_run(parent).info.status == "FINISHED"
    assert track.parent_run(experiment, "manual__2026-01-01T00-00-00", {"more": "x"}) == parent
    run = client.get_run(parent)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["airflow.dag_id"], run.data.tags["more"]) == ("tiny", "x")
    assert track.parent_run(experiment, "manual__2026-01-02T00-00-00", {}) != parent


def test_a_member_is_a_nested_run_with_all_that_was_measured(track, client, parent, tmp_path):
    (tmp_path / "any").write_text("{}")
    run = client.get_run(member(track, parent, artifacts={"math/samples.jsonl": tmp_path / "any"}))
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.info.run_name == "ties(d=0.5)+aim(w=0.4) math+code"
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"math": 0.4, "math_stderr": 0.03, "math_response_tokens": 6.5, "on_front": 1.0}
    assert run.data.params["density"] == "0.5"
    assert run.data.tags["mergeflow.digest"] == "d1"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "math")] == ["math/samples.jsonl"]


def test_a_member_is_recorded_once_and_its_last_score_counts(mlflow_server, track, client, experiment, parent):
    first = member(track, parent, score=0.4)
    assert member(Tracking(mlflow_server), parent, score=0.3) == first
    assert client.get_run(first).data.metrics["math"] == 0.3
    assert len(client.search_runs([experiment])) == 2
    assert member(track, parent, name="another") != first


def test_changed_parameters_make_a_new_run_in_place_of_the_old(track, client, experiment, parent):
    first = member(track, parent)
    second = member(track, parent, params={"method": "ties", "density": 0.7})
    assert second != first
    assert client.get_run(second).data.params == {"method": "ties", "density": "0.7"}
    assert {run.info.run_id for run in client.search_runs([experiment])} == {parent, second}


def test_files_of_a_run_are_replaced(track, client, parent, tmp_path):
    track.log_texts(parent, {"front.html": "old", "candidates.md": "| a |"})
    track.log_texts(parent, {"front.html": "new"})
    track.log_bytes(parent, {"front.png": b"\x89PNG"})
    assert {file.path for file in client.list_artifacts(parent)} == {"front.html", "candidates.md", "front.png"}
    folder = client.download_artifacts(parent, "", str(tmp_path))
    assert Path(folder, "front.html").read_text() == "new"
    assert Path(folder, "front.png").read_bytes() == b"\x89PNG"


def test_a_checkpoint_is_registered_once(mlflow_server, track, client, parent, study):
    model = f"{study}-merge"
    assert track.champion(model) is None
    first = track.register(model, "d1", "s3://bucket/models/d1", parent, {"mergeflow.name": "a"}, "A card")
    assert Tracking(mlflow_server).register(model, "d1", "s3://bucket/models/d1", parent, {}) == first == 1
    assert track.register(model, "d2", "s3://bucket/models/d2", parent, {}) == 2
    version = client.get_model_version(model, "1")
    assert version.tags == {"mergeflow.digest": "d1", "mergeflow.name": "a"}
    assert (version.source, version.run_id, version.description) == ("s3://bucket/models/d1", parent, "A card")


def test_registering_again_brings_the_scores_up_to_date(track, client, parent, study):
    track.register(study, "d" * 64, "s3://bucket/models/x", parent, {"score.math": "0.2"})
    version = track.register(study, "d" * 64, "s3://bucket/models/x", parent, {"score.math": "0.9"})
    assert client.get_model_version(study, str(version)).tags["score.math"] == "0.9"


def test_a_run_that_failed_ends_as_failed_and_none_is_made_up(track, client, parent, study):
    track.fail(study, client.get_run(parent).data.tags["mergeflow.dag_run"])
    assert client.get_run(parent).info.status == "FAILED"
    track.fail(f"no-{study}", "no-run")
    assert client.get_experiment_by_name(f"no-{study}") is None


def test_of_two_that_register_a_checkpoint_at_once_one_stands(mlflow_server, track, client, parent, study, monkeypatch):
    other = Tracking(mlflow_server)
    create = track.client.create_model_version

    def late(*args, **kwargs):
        other.register(study, "d1", "s3://bucket/models/d1", parent, {})
        return create(*args, **kwargs)

    monkeypatch.setattr(track.client, "create_model_version", late)
    assert track.register(study, "d1", "s3://bucket/models/d1", parent, {}) == 1
    assert [version.version for version in client.search_model_versions(f"name = '{study}'")] == ["1"]


def test_aliases_move_and_go(track, parent, study):
    for digest in ("d1", "d2"):
        track.register(study, digest, f"s3://bucket/models/{digest}", parent, {})
    track.set_alias(study, "champion", 1)
    track.set_alias(study, "champion", 2)
    assert track.champion(study) == Version(2, "d2", "s3://bucket/models/d2")
    track.remove_alias(study, "champion")
    track.remove_alias(study, "champion")
    assert track.champion(study) is None


def test_links_name_the_experiment_and_its_runs(track, mlflow_server):
    assert track.run_url("7", "abc") == f"{mlflow_server}/#/experiments/7/runs/abc"
    assert track.runs_url("7") == f"{mlflow_server}/#/experiments/7/runs"
    link = unquote(track.compare_url("7", ["a", "b"]))
    assert link == f'{mlflow_server}/#/compare-runs?runs=["a","b"]&experiments=["7"]'


def test_no_server_is_transient_and_names_the_address_without_its_password():
    with pytest.raises(TransientError, match=r"MLflow does not answer at http://127.0.0.1:9 ") as error:
        Tracking("http://user:hidden@127.0.0.1:9")
    assert "hidden" not in str(error.value)


def test_what_mlflow_refuses_is_the_users_to_correct(track, parent):
    with pytest.raises(InputError, match="cannot register a version of 'a/b'"):
        track.register("a/b", "d1", "s3://bucket/models/d1", parent, {})


def test_a_run_that_is_gone_is_not_a_traceback(track):
    with pytest.raises(TransientError, match="cannot end a run"):
        track.finish("0" * 32, "FINISHED")


def test_artifacts_that_cannot_be_stored_are_transient(track, parent, monkeypatch):
    def refuse(*_):
        raise requests.HTTPError("500 Server Error")

    monkeypatch.setattr(track.client, "log_artifact", refuse)
    with pytest.raises(TransientError, match=r"cannot store artifacts \(HTTPError\)"):
        track.log_texts(parent, {"a.txt": "x"})


def test_connection_names_the_server(mlflow_server, monkeypatch):
    host, port = mlflow_server.rsplit(":", 1)
    connection = {"conn_type": "http", "host": host, "port": int(port)}
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
    assert tracking().uri == mlflow_server


def test_a_missing_connection_is_named(monkeypatch):
    monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
    with pytest.raises(InputError, match="connection mlflow_default does not exist: .* AIRFLOW_CONN_MLFLOW_DEFAULT"):
        tracking()
