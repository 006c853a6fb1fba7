"""Running the command in this process, on copies of the demo family."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from operators import cli

FAMILY = Path(__file__).parents[3] / "infra" / "demo" / "family"


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


@pytest.fixture
def refused(run):
    """`refused("check", FILE)` gives the one line of a refusal."""

    def call(*arguments):
        status, out, lines = run(*arguments)
        assert status == 2
        assert out == ""
        assert len(lines) == 1, lines
        assert lines[0].startswith("mergeflow: ")
        return lines[0]

    return call


@pytest.fixture
def edit_weights():
    """`edit_weights(folder, change)` lets `change` edit a model's tensors."""

    def edit(folder, change):
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return edit
