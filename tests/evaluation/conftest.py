"""Tasks of our own in a temporary folder, and a model whose every answer is known beforehand."""

import json
from pathlib import Path

import pytest

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {name}.jsonl
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder that stands in for evaluation/tasks."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    monkeypatch.setattr("evaluation.catalogue.OWN_TASKS", folder)
    return folder


@pytest.fixture
def add_task(tasks):
    """Writes a task of (question, answer) pairs; `more` is appended to its YAML."""

    def add(name: str, questions: list[tuple[str, str]], more: str = "") -> Path:
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in questions]
        (tasks / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        path = tasks / f"{name}.yaml"
        path.write_text(TASK.format(name=name) + more)
        return path

    return add


@pytest.fixture(scope="session")
def counting_model(tmp_path_factory):
    """A Llama that counts: after 3 it writes 456789 and ends. One layer that adds nothing, so the next token is a
    function of the last one: the embedding is the identity, and the head maps each digit to its successor."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *"0123456789 abcdefghijklmnopqrstuvwxyz\n"]
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    size = 64
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    successor = torch.full((size,), vocabulary["</s>"])
    successor[: len(words)] = torch.tensor([vocabulary.get(str(int(w) + 1), 2) if w.isdigit() else 2 for w in words])
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(torch.nn.functional.one_hot(successor, size).T.float())
    folder = tmp_path_factory.mktemp("counting_model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
