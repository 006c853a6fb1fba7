"""The long-to-short pair on disk and how it is scored: `slow` writes its steps, `fast` the answer alone."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo.family import answers
from infra.demo.sums import Sum, final

FOLDER = Path(__file__).parent / "pair"
MEMBERS = ("base", "slow", "fast")
MAX_RESPONSE_TOKENS = 48  # the longest sum takes 29 with all its steps


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sums: Sequence[Sum]) -> dict[str, float]:
    """`accuracy`, the share of right answers (0 to 1), and `response_tokens`, the mean length of a response."""
    given = answers(model, tokenizer, [one.question for one in sums], MAX_RESPONSE_TOKENS)
    right = [final(text) == one.answer for text, one in zip(given, sums, strict=True)]
    lengths = [len(tokenizer(text, add_special_tokens=False, padding=False).input_ids) for text in given]
    return {"accuracy": fmean(right), "response_tokens": fmean(lengths)}
