"""The demo family on disk: its configuration, its folders, and how a member is saved, loaded and scored."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from infra.demo.corpus import SKILLS, Example
from merging.digest import file_sha256

FOLDER = Path(__file__).parent / "family"
MEMBERS = ("base", *SKILLS)
MAX_ANSWER_TOKENS = 16


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights, about 1.2 million parameters, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> dict[str, str]:
    """Write an ordinary model folder, weights in bfloat16; returns the SHA-256 of each file by name."""
    model = model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = sorted(folder.iterdir())
    for path in files:
        path.chmod(0o644)  # transformers leaves some of them unreadable to other users
    return {path.name: file_sha256(path) for path in files}


def load(name: str, members: Path = FOLDER) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A member's model (float32, so that the arithmetic is the same on every CPU) and tokenizer."""
    folder = members / name
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[str],
    longest: int = MAX_ANSWER_TOKENS,
) -> list[str]:
    """What the model answers to each question, decoded greedily, in at most `longest` tokens."""
    model.eval()
    prompts = tokenizer([f"{question}\n" for question in questions], return_tensors="pt", padding=True)
    tokens = model.generate(**prompts, max_new_tokens=longest, do_sample=False)
    return tokenizer.batch_decode(tokens[:, prompts.input_ids.shape[1] :], skip_special_tokens=True)


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]) -> float:
    """The share of questions answered exactly right, 0 to 1."""
    given = answers(model, tokenizer, [e.question for e in examples])
    return sum(text.strip() == e.answer for text, e in zip(given, examples, strict=True)) / len(examples)
