"""A calibration that was interrupted goes on from its last finished layer, and gives the same bytes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from merging.calibration import calibrate, partial
from merging.checkpoint import Checkpoint
from merging.errors import InputError, TransientError
from merging.output import lock
from merging.tensor_file import load_tensors, save_tensors
from tests.merging.architectures import make_model

BLOCKS = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(7))
PARTS = 5  # the embedding, three layers, what follows
RUN = """
import os, signal, sys, torch
from merging.calibration import calibrate
from merging.tensor_file import load_tensors
from pathlib import Path

def die(done, total, label):
    if done == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

calibrate(sys.argv[1], load_tensors(Path(sys.argv[2]))[0]["input_ids"], sys.argv[3], progress=die)
"""


@pytest.fixture
def model(tmp_path):
    return make_model("mixtral", tmp_path / "model")


class Interrupted(Exception):
    pass


def interrupt(model, out, after: int, blocks=BLOCKS) -> None:
    """Calibrate until `after` samples went through a part."""

    def progress(done, _total, _label):
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        calibrate(model, blocks, out, progress=progress)


def told(model, out, **options) -> list[int]:
    """The progress of a calibration that comes to its end."""
    seen = []
    calibrate(model, options.pop("blocks", BLOCKS), out, progress=lambda done, *_: seen.append(done), **options)
    return seen


@pytest.mark.parametrize("after", [1, 2, 3, 6, 9, 10])
def test_it_goes_on_at_the_unfinished_layer(model, tmp_path, after):
    out = tmp_path / "s.safetensors"
    assert told(model, out) == list(range(1, 11))
    expected = out.read_bytes()
    out.unlink()
    interrupt(model, out, after)
    assert not out.exists()
    finished = min(after // len(BLOCKS), PARTS - 1)
    assert told(model, out) == list(range(finished * len(BLOCKS) + 1, 11))
    assert out.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "s.safetensors"]


def test_a_killed_process_leaves_what_the_next_goes_on_from(model, tmp_path):
    save_tensors(tmp_path / "blocks.safetensors", {"input_ids": BLOCKS})
    out = tmp_path / "s.safetensors"
    command = [sys.executable, "-c", RUN, model, tmp_path / "blocks.safetensors", out, "5"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    assert told(model, out) == list(range(5, 11))
    resumed = out.read_bytes()
    calibrate(model, BLOCKS, out)
    assert out.read_bytes() == resumed


def test_another_run_does_not_go_on_from_it(model, tmp_path):
    out = tmp_path / "s.safetensors"
    for options in ({"blocks": BLOCKS.flip(1)}, {"dtype": torch.bfloat16}, {"metadata": {"model": "another"}}):
        interrupt(model, out, 6)
        assert told(model, out, **options)[0] == 1
        assert not out.with_name("s.safetensors.partial").exists()


def test_a_damaged_state_is_not_gone_on_from(model, tmp_path):
    out = tmp_path / "s.safetensors"
    interrupt(model, out, 6)
    state = out.with_name("s.safetensors.partial") / partial.STATE
    state.write_bytes(state.read_bytes()[:-8])
    assert told(model, out)[0] == 1


def test_saving_takes_no_more_than_its_share(model, tmp_path, monkeypatch):
    replaced = []
    monkeypatch.setattr(partial.os, "replace", lambda *paths: (replaced.append(paths), os.rename(*paths)))
    monkeypatch.setattr(partial, "ALWAYS", 0.0)
    monkeypatch.setattr(partial, "SHARE", 1e-9)
    calibrate(model, BLOCKS, tmp_path / "s.safetensors")
    assert [Path(new).name for new, _ in replaced] == [f"{partial.STATE}.new", partial.RESULT]


def test_what_is_in_the_way_stays(model, tmp_path):
    foreign = tmp_path / "s.safetensors.partial"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="was not left by a calibration"):
        calibrate(model, BLOCKS, tmp_path / "s.safetensors")
    assert (foreign / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="is a folder; name the file to make"):
        calibrate(model, BLOCKS, model)


def test_two_at_once_do_not_write_one_file(model, tmp_path):
    descriptor = lock(tmp_path / "s.safetensors.partial")
    with pytest.raises(TransientError, match="wait for it"):
        calibrate(model, BLOCKS, tmp_path / "s.safetensors")
    os.close(descriptor)
    calibrate(model, BLOCKS, tmp_path / "s.safetensors")


def test_a_model_that_is_not_whole_leaves_nothing(model, tmp_path):
    tensors, _ = load_tensors(model / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_tensors(model / "model.safetensors", tensors)
    assert "model.layers.1.input_layernorm.weight" not in Checkpoint(model).entries
    with pytest.raises(InputError, match="model.layers.1.input_layernorm.weight is missing"):
        calibrate(model, BLOCKS, tmp_path / "s.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_activations_that_are_not_finite_are_refused_by_name(tmp_path):
    model = make_model("llama", tmp_path / "model")
    tensors, _ = load_tensors(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_tensors(model / "model.safetensors", tensors)
    for streamed in (True, False):
        with pytest.raises(InputError, match="what goes into model.layers.1.mlp.down_proj is not finite"):
            calibrate(model, BLOCKS, tmp_path / "s.safetensors", streamed=streamed)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_configuration_that_transformers_does_not_know_is_told(model, tmp_path):
    (model / "config.json").write_text('{"model_type": "nothing", "architectures": ["NothingForCausalLM"]}')
    with pytest.raises(InputError, match="model: does not load in transformers: .*nothing") as caught:
        calibrate(model, BLOCKS, tmp_path / "s.safetensors")
    assert "\n" not in str(caught.value)
