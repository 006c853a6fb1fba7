"""The command: each mistake a person can make is one line on stderr, status 2, and nothing is written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from operators import cli
from tests.hub_server import HubServer

FAMILY = Path(__file__).parents[2] / "infra" / "demo" / "family"


@pytest.fixture
def models(tmp_path):
    """Copies of a base and an expert that a test may damage."""
    for name in ("base", "math"):
        shutil.copytree(FAMILY / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """`run("check", FILE)` gives (status, stdout, lines of stderr), with a cache of its own."""
    monkeypatch.setenv("MERGEFLOW_CACHE", str(tmp_path / "cache"))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mergeflow", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return call


@pytest.fixture
def study(models):
    """`study(key=value)` writes a study of the copies with keys changed."""

    def write(**changes):
        data = {
            "name": "mine",
            "base": "./base",
            "experts": {"math": "./math"},
            "combinations": [["math"]],
            "methods": ["task_arithmetic"],
            "benchmarks": {"math": {"task": "tiny_math"}},
            "objectives": {"math": "maximise"},
            **changes,
        }
        path = models / "mine.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


def refused(result):
    """The one line of a refusal."""
    status, out, lines = result
    assert status == 2
    assert out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("mergeflow: ")
    return lines[0]


def test_a_good_study_is_summed_up(run, study):
    status, out, lines = run("check", study())
    assert (status, lines) == (0, [])
    assert "study mine: no mistakes found" in out
    assert "1 candidates, 1 benchmarks" in out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": ["linear"]}, "unknown key; did you mean 'methods'?"),
        ({"methods": ["tiess"]}, "unknown merge method 'tiess'"),
        ({"methods": [{"merge_method": "ties", "parameters": {"density": 1.5}}]}, "density must be a number"),
        ({"benchmarks": {"math": {"task": "tiny_maths"}}}, "did you mean tiny_math"),
        ({"experts": {"math": "./nowhere"}}, "no such folder"),
    ],
)
def test_mistakes_in_the_study(run, study, changes, says):
    assert says in refused(run("check", study(**changes)))


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_expert_of_another_architecture(run, study, models):
    edit_config(models / "math", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    assert "qwen2" in refused(run("check", study()))


def test_an_expert_of_another_shape(run, study, models):
    name = "model.layers.0.mlp.up_proj.weight"
    edit_weights(models / "math", lambda weights: weights.update({name: weights[name][:-1].clone()}))
    assert name in refused(run("check", study()))


def test_an_expert_with_a_missing_tensor(run, study, models):
    edit_weights(models / "math", lambda weights: weights.pop("model.norm.weight"))
    assert "model.norm.weight" in refused(run("check", study()))


def test_a_truncated_checkpoint(run, study, models):
    path = models / "math" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refused(run("check", study()))


def test_a_pickle_checkpoint(run, study, models):
    (models / "math" / "model.safetensors").unlink()
    (models / "math" / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    assert "only pickle weights (pytorch_model.bin)" in refused(run("check", study()))


def test_a_hub_id_and_a_revision_that_do_not_exist(run, study, monkeypatch):
    with HubServer() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        hub.commit("org/math", {"config.json": b"{}"})
        assert "org/nothing: no such model" in refused(run("check", study(experts={"math": "org/nothing"})))
        assert "no such revision" in refused(run("check", study(experts={"math": "org/math@v9"})))


def test_a_wrong_s3_credential(run, study, object_store, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    line = refused(run("check", study(experts={"math": f"s3://{object_store.bucket}/models/x"})))
    assert "credentials" in line
    assert "not-the-secret" not in line


def test_a_weight_that_is_not_a_number_stops_the_merge(run, models, monkeypatch):
    monkeypatch.chdir(models)
    name = "model.layers.1.self_attn.q_proj.weight"

    def poison(weights):
        weights[name][0, 0] = torch.nan

    edit_weights(models / "math", poison)
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": [{"model": "math"}]}
    (models / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    before = sorted(models.iterdir())
    line = refused(run("merge", "recipe.yaml", "out"))
    assert name in line
    assert "math" in line
    assert sorted(models.iterdir()) == before


def test_a_recipe_is_checked_merged_and_evaluated(run, models, monkeypatch):
    monkeypatch.chdir(models)
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "math"}],
        "aim": {"omega": 0.4, "statistics": "statistics.safetensors"},
    }
    (models / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (models / "texts.jsonl").write_text('{"text": "Compute 1+1\\n2"}\n' * 20)
    options = ["--texts", "texts.jsonl", "--samples", 20, "--block", 16]
    assert run("calibrate", "base", "statistics.safetensors", *options)[0] == 0
    assert run("check", "recipe.yaml")[0] == 0
    status, out, _ = run("merge", "recipe.yaml", "out")
    assert (status, (models / "out" / "model.safetensors").is_file()) == (0, True)
    assert out.startswith("out: ")
    status, out, _ = run("evaluate", "out", "--task", "tiny_math", "--limit", 10, "--samples", "answers")
    assert status == 0
    assert "tiny_math: " in out
    assert "10 questions" in out
    assert len((models / "answers" / "tiny_math.jsonl").read_text().splitlines()) == 10


def test_plan_and_methods_list_what_there_is(run, study):
    status, out, _ = run("plan", study(methods=["linear", "ties"]))
    assert status == 0
    assert "study mine: 2 candidates; 4 models on 1 benchmarks" in out
    status, out, _ = run("methods")
    assert status == 0
    assert "task_arithmetic" in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['mergeflow', '--help']\n"
        "from operators import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print({*sys.modules} & {'torch', 'transformers', 'mlflow', 'lm_eval', 'airflow', 'boto3', 'huggingface_hub'})"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "set()"
    assert "check" in shown
