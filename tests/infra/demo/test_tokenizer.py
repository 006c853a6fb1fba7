"""The tokenizer gives every text back, and the chat template writes what the models were trained on."""

import pytest

from infra.demo.corpus import SKILLS
from infra.demo.questions import benchmark
from infra.demo.tokenizer import build_tokenizer

QUESTION = {"role": "user", "content": "Compute 12+34"}
ANSWER = {"role": "assistant", "content": "46"}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("skill", SKILLS)
def test_decoding_gives_the_text_back(tokenizer, skill):
    for example in benchmark(skill):
        ids = tokenizer(example.text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == example.text


def test_a_text_starts_with_bos_and_framing_words_are_single_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("Compute 12+34\n").input_ids) == [
        "<bos>", "Compute ", "1", "2", "+", "3", "4", "\n",
    ]  # fmt: skip


def test_an_unknown_character_becomes_one_unk(tokenizer):
    assert tokenizer("é").input_ids == [tokenizer.bos_token_id, tokenizer.unk_token_id]


def test_the_chat_template_asks_as_in_training(tokenizer):
    assert tokenizer.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True) == (
        "<bos>Compute 12+34\n"
    )
    assert tokenizer.apply_chat_template([QUESTION, ANSWER], tokenize=False) == "<bos>Compute 12+34\n46<eos>"
