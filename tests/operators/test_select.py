"""The select step on a study of which a candidate could not be made: shown as that, and the study goes on without."""

import uuid
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from merging.errors import InputError, TransientError
from operators.hooks.mlflow import Tracking
from operators.select import SelectOperator

CONTEXT = {"ti": SimpleNamespace(log_url="http://airflow/dags/small/runs/run/tasks/select")}
REASON = "tensor lm_head.weight holds NaN or Inf: the merge overflowed (and 56 more)"


@pytest.fixture
def plan(make_plan):
    """A plan of two candidates."""
    return make_plan(["linear", "ties"], run=f"run-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def refuse(store, plan):
    """`refuse(candidate, ...)` notes what the merge step notes of candidates that cannot be made."""

    def note(*candidates):
        names = {one.name: REASON for one in candidates}
        store.write_json(f"studies/small/{plan.run}/not_made/math+code.json", names)

    return note


@pytest.fixture
def scored(store):
    """`scored(member, ...)` gives members a score of 50 % on everything."""

    def publish(*members):
        score = {"value": 0.5, "stderr": 0.1, "response_tokens": 3.0}
        for digest in [digest for member in members for digest in member.scores.values()]:
            store.write_json(f"scores/{digest}/manifest.json", {"digest": digest, "files": {}, "score": score})

    return publish


@pytest.fixture
def select(store, plan, mlflow_server, monkeypatch):
    monkeypatch.setattr("operators.select.tracking", lambda: Tracking(mlflow_server))
    return lambda: SelectOperator(task_id="select", plan="").work(store, plan, CONTEXT)


@pytest.fixture
def runs(plan, mlflow_server):
    """`runs()` gives the DAG run's MLflow runs by name."""

    def find():
        client = MlflowClient(mlflow_server)
        experiment = client.get_experiment_by_name("small").experiment_id
        [parent] = client.search_runs([experiment], f"tags.`mergeflow.dag_run` = '{plan.run}'")
        nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
        return {"parent": parent, **{run.info.run_name: run for run in nested}}

    return find


def test_the_study_goes_on_without_it_and_says_so(store, plan, refuse, scored, select, runs):
    good, bad = plan.candidates
    refuse(bad)
    scored(*plan.models, good)
    select()
    report = store.read_json(f"studies/small/{plan.run}/report.json")
    assert [row["name"] for row in report["rows"]] == ["base", "math", "code", good.name]
    assert report["not_made"] == {bad.name: REASON}
    found = runs()
    assert found["parent"].info.status == "FINISHED"
    assert found[good.name].info.status == "FINISHED"
    assert found[bad.name].info.status == "FAILED"
    assert found[bad.name].data.tags["mergeflow.not_made"] == REASON
    assert found[bad.name].data.params["method"] == "ties"
    page = found["parent"].data.tags["mlflow.note.content"]
    table, _, line = page.rstrip().rpartition("\n\n")
    assert line == f"not made: {bad.name}: {REASON}"
    assert good.name in table


def test_a_study_of_which_nothing_could_be_made_fails(plan, refuse, scored, select, runs):
    refuse(*plan.candidates)
    scored(*plan.models)
    with pytest.raises(InputError) as caught:
        select()
    assert caught.value.problems == [f"no candidate could be made: {one.name}: {REASON}" for one in plan.candidates]
    assert {runs()[one.name].info.status for one in plan.candidates} == {"FAILED"}


def test_a_candidate_without_score_or_reason_is_waited_for(plan, scored, select):
    scored(*plan.models, plan.candidates[0])
    with pytest.raises(TransientError, match=r"^ties math\+code has no score on math yet"):
        select()
