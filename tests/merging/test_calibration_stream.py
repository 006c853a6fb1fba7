"""A streamed run gives what the whole model gives, for every architecture, within the memory of a layer."""

import json
import math
import shutil

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from merging.aim import factor, module_of
from merging.calibration import calibrate
from merging.calibration.stream import NotStreamable, stream, whole
from merging.checkpoint import Checkpoint
from merging.tensor_file import load_tensors
from merging.vocabulary import is_embedding
from tests.merging.architectures import ARCHITECTURES, make_model
from tests.merging.memory import growth

BLOCKS = torch.randint(3, 97, (3, 20), generator=torch.Generator().manual_seed(7))
ROUTERS = ("block_sparse_moe.", "mlp.")  # Mixtral's checkpoints have another name for what is `mlp` in the model


def statistics(folder, out, **options):
    calibrate(folder, options.pop("blocks", BLOCKS), out, **options)
    return load_tensors(out)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.max().item())


@torch.no_grad()
def hooked(folder, blocks):
    """Sums of the means of |x| by module, and of what a mixture's experts get, seen in a model loaded as usual."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums, routed = {}, {}

    def plain(name):
        return lambda _, inputs: sums.__setitem__(name, sums.get(name, 0) + inputs[0].abs().flatten(0, -2).mean(0))

    def experts(name):
        return lambda _, inputs: routed.setdefault(name, []).append([one.clone() for one in inputs])

    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), nn.Parameter) and not isinstance(module, nn.Embedding):
            module.register_forward_pre_hook(plain(name))
        if name.endswith(".experts"):
            module.register_forward_pre_hook(experts(name))
    for ids in blocks:
        model(ids[None], use_cache=False)
    return sums, routed


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_both_ways_agree_with_hooks_on_the_model(name, tmp_path):
    folder = make_model(name, tmp_path / "model")
    streamed, about = statistics(folder, tmp_path / "s.safetensors")
    at_once, other = statistics(folder, tmp_path / "w.safetensors", streamed=False)
    expected, _ = hooked(folder, BLOCKS)
    assert streamed.keys() == at_once.keys()
    assert about == other
    for module, vector in streamed.items():
        assert vector.dtype == torch.float32
        close(vector, at_once[module])
        own = {"embed_out": "lm_head"}.get(module, module.replace(*ROUTERS))
        if ".experts." not in module:
            close(vector, expected.pop(own))
    assert expected == {}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_tensor_that_aim_relaxes_has_its_statistics(name, tmp_path):
    folder = make_model(name, tmp_path / "model")
    found, _ = statistics(folder, tmp_path / "s.safetensors")
    entries = Checkpoint(folder).entries
    tied = not any(tensor in entries for tensor in ("lm_head.weight", "embed_out.weight"))
    wanted = {module_of(tensor, tied) for tensor in entries} - {None}
    assert set(found) == wanted
    widths = {tensor.removesuffix(".weight"): entry.shape[-1] for tensor, entry in entries.items()}
    assert all(len(vector) == widths[module] for module, vector in found.items() if module in widths)
    assert any(is_embedding(tensor) for tensor in entries)


@pytest.mark.parametrize(
    ("name", "into", "out"),
    [("mixtral", ("w1", "w3"), "w2"), ("qwen3_moe", ("gate_proj", "up_proj"), "down_proj")],
)
def test_an_expert_rests_on_the_tokens_routed_to_it(name, into, out, tmp_path):
    folder = make_model(name, tmp_path / "model")
    found, about = statistics(folder, tmp_path / "s.safetensors")
    counts = json.loads(about["routed_tokens"])
    weights = load_tensors(folder / "model.safetensors")[0]
    for own, calls in hooked(folder, BLOCKS)[1].items():
        prefix = own.replace(*reversed(ROUTERS)) if name == "mixtral" else own
        for expert in range(4):
            gate, up = (weights[f"{prefix}.{expert}.{one}.weight"] for one in into)
            seen, inner, rows = 0, 0, 0
            for hidden, index, _ in calls:
                if len(mine := hidden[(index == expert).any(-1)]):
                    seen = seen + mine.abs().mean(0)
                    inner = inner + (F.silu(mine @ gate.T) * (mine @ up.T)).abs().mean(0)
                    rows += len(mine)
            for one, expected in [(into[0], seen), (into[1], seen), (out, inner)]:
                module = f"{prefix}.{expert}.{one}"
                close(found[module], expected)
                assert counts[module] == rows
                assert 0 < rows < BLOCKS.numel()


def test_an_expert_that_got_no_token_has_zeros(tmp_path):
    folder = make_model("qwen3_moe", tmp_path / "model")
    found, about = statistics(folder, tmp_path / "s.safetensors", blocks=BLOCKS[:1, :2])
    idle = [module for module, rows in json.loads(about["routed_tokens"]).items() if rows == 0]
    assert idle
    assert all(".experts." in module and not found[module].any() for module in idle)
    assert all(torch.equal(factor(found[module], 0.4), torch.ones_like(found[module])) for module in idle)
    assert all(vector.any() for module, vector in found.items() if module not in idle)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "gemma3", "mistral", "pythia", "qwen2", "mixtral"])
def test_samples_of_any_length_run_alone(name, tmp_path):
    folder = make_model(name, tmp_path)
    samples = [torch.randint(3, 97, (length,)) for length in (1, 30, 9, 9, 25)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def head(module, _):
        return (lambda output: output.clone()) if module in ("lm_head", "embed_out") else None

    steps = [step for step in stream(folder, samples, outputs=head) if step.outputs]
    assert [step.sample for step in steps] == [0, 1, 2, 3, 4]
    for step in steps:
        logits = model(samples[step.sample][None]).logits
        torch.testing.assert_close(step.outputs[0][1].view_as(logits), logits, rtol=1e-5, atol=1e-4)


def test_steps_come_part_by_part_and_models_can_run_in_lockstep(tmp_path):
    folder = make_model("llama", tmp_path)

    def down(name, _):
        return torch.clone if name.endswith("down_proj") else None

    pairs = list(zip(*(stream(folder, BLOCKS, outputs=down) for _ in range(2)), strict=True))
    assert [(one.part, one.sample) for one, _ in pairs] == [(part, sample) for part in range(5) for sample in range(3)]
    assert all(one.parts == 5 for one, _ in pairs)
    for one, other in pairs:
        names = [f"model.layers.{one.part - 1}.mlp.down_proj"] if 0 < one.part < 4 else []
        assert [name for name, _ in one.outputs] == [name for name, _ in other.outputs] == names
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.outputs, other.outputs, strict=True))


@pytest.mark.parametrize("name", ["falcon", "bloom"])
def test_layers_that_give_more_than_hidden_states_are_run_whole(name, tmp_path, caplog):
    kind = {"falcon": "FalconConfig", "bloom": "BloomConfig"}[name]
    config = getattr(transformers, kind)(vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(NotStreamable):
        list(stream(tmp_path / "model", BLOCKS))
    found, _ = statistics(tmp_path / "model", tmp_path / "s.safetensors")
    assert "the whole model is loaded instead" in caplog.text
    for module, expected in hooked(tmp_path / "model", BLOCKS)[0].items():
        close(found[module], expected)


def test_in_bfloat16_sums_stay_float32(tmp_path):
    folder = make_model("qwen3", tmp_path / "model", torch.bfloat16)
    found, about = statistics(folder, tmp_path / "s.safetensors", dtype=torch.bfloat16)
    at_once, _ = statistics(folder, tmp_path / "w.safetensors", dtype=torch.bfloat16, streamed=False)
    exact, _ = statistics(folder, tmp_path / "f.safetensors")
    assert about["dtype"] == "bfloat16"
    for module, vector in found.items():
        close(vector, at_once[module])
        assert ((vector - exact[module]).abs() <= 0.05 * exact[module].max()).all()
    assert any(not torch.equal(vector, vector.bfloat16().float()) for vector in found.values())


@pytest.mark.parametrize(("name", "layers"), [("llama", 16), ("mixtral", 6)])
def test_memory_is_of_layers_not_of_the_model(name, layers, tmp_path):
    statistics(make_model(name, tmp_path / "warm", torch.bfloat16), tmp_path / "warm.safetensors")
    sizes = {"vocab_size": 16000, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": layers}
    folder = make_model(name, tmp_path / "large", torch.bfloat16, **sizes)
    blocks = torch.randint(0, 16000, (6, 64))
    entries = Checkpoint(folder).entries
    layer = 4 * sum(math.prod(entry.shape) for tensor, entry in entries.items() if ".layers.0." in tensor)
    embedding = 4 * 16000 * 512
    with growth() as added:
        statistics(folder, tmp_path / "s.safetensors", blocks=blocks)
    assert added[0] < 2 * layer + embedding + 4 * blocks.numel() * 512 + 16e6  # what one block's activations take
    assert added[0] < 0.5 * 4 * sum(math.prod(entry.shape) for entry in entries.values())
    shutil.rmtree(folder)


def test_the_head_is_computed_only_where_it_is_watched(tmp_path):
    folder = make_model("llama", tmp_path)
    seen = []
    watch = {"inputs": lambda name, _: (lambda x: seen.append(name)) if name == "lm_head" else None}
    assert [step.outputs for step in whole(folder, BLOCKS[:1], **watch)] == [[]]
    assert seen == ["lm_head"]
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(BLOCKS[:1])
    step = next(whole(folder, BLOCKS[:1], outputs=lambda name, _: torch.clone if name == "lm_head" else None))
    assert torch.equal(dict(step.outputs)["lm_head"], model.logits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
@pytest.mark.parametrize("name", ["llama", "gemma3", "mixtral"])
def test_a_gpu_gives_what_the_cpu_gives(name, tmp_path):
    folder = make_model(name, tmp_path / "model")
    expected, _ = statistics(folder, tmp_path / "c.safetensors")
    for streamed in (True, False):
        found, _ = statistics(folder, tmp_path / "g.safetensors", device="cuda", streamed=streamed)
        for module, vector in expected.items():
            torch.testing.assert_close(found[module], vector, rtol=1e-3, atol=1e-3 * vector.max().item())
