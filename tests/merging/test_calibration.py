"""Calibration texts, token blocks and activation statistics against the recorded ones."""

import json
import shutil

import pytest
import torch

from merging.calibration import calibrate, read_texts, read_token_blocks, token_blocks
from merging.digest import model_digest, model_files
from merging.errors import InputError
from merging.tensor_file import load_tensors, save_tensors


def texts(case):
    documents = json.loads((case.folder / "calib" / "documents.json").read_text())["documents"]
    return ["  " + " ".join(f"w{i}" for i in document) + "\n" for document in documents]


def case_layers(case):
    return json.loads((case.model("base") / "config.json").read_text())["num_hidden_layers"]


def test_token_blocks_equal_the_recorded(oracle):
    case = oracle("llama_f32")
    assert torch.equal(token_blocks(texts(case), case.model("base")).blocks, case.recorded("calib", "blocks")["blocks"])


def test_too_few_texts_for_a_block_are_refused(oracle):
    case = oracle("llama_f32")
    with pytest.raises(InputError, match="less than one block of 512"):
        token_blocks(["w5 w6"], case.model("base"))


def test_texts_that_ran_out_are_told(oracle):
    case = oracle("llama_f32")
    assert token_blocks(texts(case), case.model("base"), samples=5, block=64).note is None
    chosen = token_blocks([*texts(case)[:7], "", "w5 " * 600], case.model("base"), samples=100, block=64)
    assert chosen.note == "the texts ended after 7 that can be used, of 100 wanted"
    assert chosen.about["samples"] == "7"
    lengths = json.loads(chosen.about["lengths"])
    assert lengths["min"] <= lengths["mean"] <= lengths["max"] <= 512
    assert lengths["mean"] * 7 >= chosen.blocks.numel()


def test_token_blocks_are_read_as_they_are(oracle, tmp_path):
    base, file = oracle("llama_f32").model("base"), tmp_path / "blocks.safetensors"
    blocks = torch.arange(60).view(3, 20)
    save_tensors(file, {"input_ids": blocks})
    chosen = read_token_blocks(file, base)
    assert torch.equal(chosen.blocks, blocks)
    assert chosen.about == {"samples": "3", "lengths": '{"min": 20, "mean": 20.0, "max": 20}'}


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"ids": torch.zeros(2, 2, dtype=torch.int64)}, "has no tensor input_ids; it has ids"),
        ({"input_ids": torch.zeros(2, 2, dtype=torch.int32)}, r"torch.int32 of shape \[2, 2\]; it must be int64"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, r"of shape \[4\]; it must be int64"),
        ({"input_ids": torch.zeros(0, 4, dtype=torch.int64)}, r"of shape \[0, 4\]"),
        ({"input_ids": torch.tensor([[1, 2], [3, 10**6]])}, "token id 1000000 in block 1, but .* has ids 0 to"),
        ({"input_ids": torch.tensor([[1, -1]])}, "token id -1 in block 0"),
    ],
)
def test_other_token_blocks_are_refused(oracle, tmp_path, tensors, says):
    save_tensors(tmp_path / "blocks.safetensors", tensors)
    with pytest.raises(InputError, match=f"blocks.safetensors: .*{says}"):
        read_token_blocks(tmp_path / "blocks.safetensors", oracle("llama_f32").model("base"))


def test_statistics_equal_the_recorded(oracle, tmp_path):
    case = oracle("llama_f32")
    told = []
    blocks = case.recorded("calib", "blocks")["blocks"]
    calibrate(
        case.model("base"), blocks, tmp_path / "s.safetensors", progress=lambda *a: told.append(a), metadata={"x": "1"}
    )
    found, metadata = load_tensors(tmp_path / "s.safetensors")
    expected, _ = load_tensors(case.statistics)
    assert set(found) == set(expected)
    for name, s in expected.items():
        torch.testing.assert_close(found[name], s, rtol=1e-5, atol=1e-5 * s.max().item())
    model = model_digest(model_files(case.model("base")))
    assert metadata == {"blocks": "10", "dtype": "float32", "model": model, "tokens": "5120", "x": "1"}
    assert told[-1][0] == told[-1][1] == 10 * (case_layers(case) + 2)


def test_statistics_of_a_tied_model_near_the_recorded_bf16_run(oracle, tmp_path):
    case = oracle("qwen2_tied_bf16")
    calibrate(case.model("base"), case.recorded("calib", "blocks")["blocks"], tmp_path / "s.safetensors")
    found, expected = load_tensors(tmp_path / "s.safetensors")[0], load_tensors(case.statistics)[0]
    assert set(found) == set(expected)
    assert all(((found[n] - s).abs() <= 0.02 * s.max()).all() for n, s in expected.items())


def test_texts_are_objects_or_strings(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "id": 1}\n\n"b"\n')
    assert read_texts(tmp_path / "t.jsonl") == ["a", "b"]
    (tmp_path / "t.jsonl").write_text('"one\u2028line"\r\n{"text": "\x85"}')
    assert read_texts(tmp_path / "t.jsonl") == ["one\u2028line", "\x85"]


@pytest.mark.parametrize(
    ("content", "expected"), [('"a"\n{"txt": 1}', ":2: expected"), ("{", ":1: not valid JSON"), ("\n", "holds no text")]
)
def test_a_bad_line_is_named(tmp_path, content, expected):
    (tmp_path / "t.jsonl").write_text(content)
    with pytest.raises(InputError, match=f"t.jsonl{expected}|t.jsonl: {expected}"):
        read_texts(tmp_path / "t.jsonl")


def test_a_tokenizer_that_does_not_load_is_told(oracle, tmp_path):
    shutil.copytree(oracle("llama_f32").model("base"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="model: its tokenizer does not load: "):
        token_blocks(["a"], tmp_path / "model")
