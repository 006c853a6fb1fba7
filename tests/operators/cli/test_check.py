"""`mergeflow check`: each mistake a person can make is one line on stderr, status 2."""

import json
from pathlib import Path

import pytest

from tests.hub_server import HubServer

STUDIES = sorted((Path(__file__).parents[3] / "dags" / "studies").glob("tiny*.yaml"))


def test_a_good_study_is_summed_up(run, study):
    status, out, lines = run("check", study())
    assert (status, lines) == (0, [])
    assert "study mine: no mistakes found" in out
    assert "1 candidates, 1 benchmarks" in out


@pytest.mark.parametrize("file", STUDIES, ids=[file.stem for file in STUDIES])
def test_the_demo_studies_have_no_mistakes(run, file):
    status, out, lines = run("check", file)
    assert (status, lines) == (0, [])
    assert f"study {file.stem}: no mistakes found" in out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": ["linear"]}, "unknown key; did you mean methods?"),
        ({"methods": ["tiess"]}, "unknown merge method 'tiess'"),
        ({"methods": [{"merge_method": "ties", "parameters": {"density": 1.5}}]}, "density must be a number"),
        ({"benchmarks": {"math": {"task": "tiny_maths"}}}, "did you mean tiny_math"),
        ({"experts": {"math": "./nowhere"}}, "no such folder"),
    ],
)
def test_mistakes_in_the_study(refused, study, changes, says):
    assert says in refused("check", study(**changes))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_expert_of_another_architecture(refused, study, models):
    edit_config(models / "math", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    assert "qwen2" in refused("check", study())


def test_an_expert_of_another_shape(refused, study, models, edit_weights):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(models / "math", lambda weights: weights.update({name: weights[name][:-1].clone()}))
    assert name in refused("check", study())


def test_an_expert_with_a_missing_tensor(refused, study, models, edit_weights):
    edit_weights(models / "math", lambda weights: weights.pop("model.norm.weight"))
    assert "model.norm.weight" in refused("check", study())


def test_a_truncated_checkpoint(refused, study, models):
    path = models / "math" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused("check", study())


def test_a_pickle_checkpoint(refused, study, models):
    (models / "math" / "model.safetensors").unlink()
    (models / "math" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert "only pickle weights (pytorch_model.bin)" in refused("check", study())


def test_a_hub_id_and_a_revision_that_do_not_exist(refused, study, monkeypatch):
    with HubServer() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        hub.commit("org/math", {"config.json": b"{}"})
        assert "org/nothing: no such model" in refused("check", study(experts={"math": "org/nothing"}))
        assert "no such revision" in refused("check", study(experts={"math": "org/math@v9"}))


def test_a_wrong_s3_credential(refused, study, object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    line = refused("check", study(experts={"math": f"s3://{object_store.bucket}/models/x"}))
    assert "credentials" in line
    assert "not-the-secret" not in line
