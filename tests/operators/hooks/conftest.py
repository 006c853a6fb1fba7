"""What the hooks' tests share: a stand-in hub, and small model folders."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save


@pytest.fixture
def hub_server(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # tests/ cannot go on sys.path: its folders have the names of the packages they test.
    spec = spec_from_file_location("hub_server", Path(__file__).parents[2] / "hub_server.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.HubServer() as server:
        yield server


@pytest.fixture
def make_model():
    """make_model(seed=0, size=64) -> {file name: bytes} of a small checkpoint of size x size float32 weights."""

    def make(seed: int = 0, size: int = 64) -> dict[str, bytes]:
        weight = numpy.random.default_rng(seed).standard_normal((size, size)).astype("float32")
        return {
            "config.json": json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": size}).encode(),
            "model.safetensors": save({"weight": weight}, metadata={"format": "pt"}),
            "tokenizer.json": b'{"version": "1.0"}',
        }

    return make


@pytest.fixture
def write_folder(tmp_path):
    """write_folder(name, files) -> the folder it wrote the files into."""

    def write(name: str, files: dict[str, bytes]) -> Path:
        folder = tmp_path / name
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)
        return folder

    return write
