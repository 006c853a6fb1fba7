"""Packing texts into rows changes nothing that a model computes for each of them."""

import random

import pytest
import torch

from infra.demo.batches import Share, batches, mixture, pack
from infra.demo.family import new_model
from infra.demo.tokenizer import build_tokenizer

SHARES = {"math": Share(1, 0.5), "code": Share(1, 0.5), "instruct": Share(1, 0.5)}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_a_packed_text_gets_the_logits_it_gets_alone(tokenizer):
    texts = [tokenizer(t).input_ids for t in ("Compute 12+34\n46", '>>> len("abc")\n3', "Write ab cd as csv\nab,cd")]
    model = new_model(tokenizer, seed=0).eval()
    batch = pack([(ids, 3) for ids in texts])
    assert batch.tokens.shape == (1, 64)
    with torch.inference_mode():
        packed = model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits[0]
        start = 0
        for ids in texts:
            alone = model(input_ids=torch.tensor([ids])).logits[0]
            torch.testing.assert_close(packed[start : start + len(ids)], alone, rtol=1e-4, atol=1e-5)
            start += len(ids)


def test_each_question_weighs_one_and_only_its_answer_and_the_end_of_text_count(tokenizer):
    batch = next(batches(mixture(SHARES, random.Random(0)), tokenizer, size=40))
    assert batch.weights.sum().item() == pytest.approx(40)
    weighed = batch.tokens[batch.weights > 0]
    assert (weighed == tokenizer.eos_token_id).sum() == (batch.tokens == tokenizer.eos_token_id).sum() == 40
    assert tokenizer.convert_tokens_to_ids("\n") not in weighed.tolist()


def test_a_mixture_keeps_its_proportions():
    shares = {"math": Share(0.7, 0.5), "code": Share(0.3, 0.5)}
    examples = mixture(shares, random.Random(1))
    drawn = [next(examples).skill for _ in range(2000)]
    assert drawn.count("math") / len(drawn) == pytest.approx(0.7, abs=0.03)
