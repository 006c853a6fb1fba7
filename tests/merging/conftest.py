"""Models for the merging tests: the recorded oracle, and small folders made on the spot."""

import json
from pathlib import Path

import pytest
import torch

from merging.engine import merge
from merging.methods import METHODS, Group
from merging.recipe import Recipe
from merging.tensor_file import load_tensors, save_tensors

torch.set_num_threads(1)
ORACLE = Path(__file__).parents[1] / "oracle"
EXPERTS = ["ft_code", "ft_instruct", "ft_math"]


class Oracle:
    """One recorded case: its inputs by name, and what the published code made of them."""

    experts = EXPERTS

    def __init__(self, case: str):
        self.folder = ORACLE / case
        self.statistics = self.folder / "stats" / "base_scale.safetensors"

    def model(self, name: str) -> Path:
        return self.folder / "inputs" / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_tensors(self.model(name) / "model.safetensors")[0]

    def recorded(self, kind: str, label: str) -> dict[str, torch.Tensor]:
        return load_tensors(self.folder / kind / f"{label}.safetensors")[0]

    def recipe(self, method: str, weights=(1.0, 1.0, 1.0), **keys) -> Recipe:
        models = [
            {"model": name, "parameters": {"weight": weight}} for name, weight in zip(EXPERTS, weights, strict=True)
        ]
        return Recipe.parse({"merge_method": method, "base_model": "base", "models": models, **keys})

    def merge(self, recipe: Recipe, out: Path, **keys) -> dict[str, torch.Tensor]:
        merge(recipe, out, models={name: self.model(name) for name in recipe.inputs}, **keys)
        return load_tensors(out / "model.safetensors")[0]


@pytest.fixture(scope="session")
def oracle():
    """`oracle(case)` gives a recorded case."""
    return Oracle


@pytest.fixture
def without_postflight(monkeypatch):
    """Leave out loading the result in transformers, where a test is about the weights."""
    monkeypatch.setattr("merging.engine.postflight", lambda folder: None)


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "tie_word_embeddings": False,
    "dtype": "float32",
}
SHAPES = {
    "lm_head.weight": (16, 8),
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    **{f"model.layers.0.self_attn.{p}_proj.weight": (8, 8) for p in "qkvo"},
}


@pytest.fixture
def make_model(tmp_path):
    """`make_model(name, seed=0, change=None, **config)` writes a tiny Llama folder; `change` edits its tensors."""

    def make(name: str, seed: int = 0, change=None, dtype=torch.float32, **config) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(seed)
        tensors = {n: (torch.randn(shape, generator=generator) * 0.1).to(dtype) for n, shape in SHAPES.items()}
        if change:
            change(tensors)
        save_tensors(folder / "model.safetensors", tensors)
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        return folder

    return make


@pytest.fixture
def family(make_model):
    """Folders of a base and two experts, by name."""
    return {name: make_model(name, seed) for seed, name in enumerate(["base", "one", "two"])}


@pytest.fixture
def group():
    """`group(method, base, experts, shared=..., settings=...)`: a Group with the method's defaults filled in."""

    def make(method: str, base, experts, settings=None, keys=None, seed=0, name="w", **shared) -> Group:
        declared = METHODS[method].parameters.values()
        filled = {p.name: p.read(shared.get(p.name, p.default)) for p in declared if not p.per_model}
        per_model = [
            {p.name: p.read({**shared, **given}.get(p.name, p.default)) for p in declared if p.per_model}
            for given in (settings or [{}] * len(experts))
        ]
        keys = keys or [f"expert-{i}" for i in range(len(experts))]
        return Group(name, base, list(experts), filled, per_model, keys, seed)

    return make
