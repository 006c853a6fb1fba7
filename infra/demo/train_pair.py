"""Train the long-to-short pair from scratch: `python -m infra.demo.train_pair`, about five minutes on one CPU core.

The base learns sums of two to five numbers, worked out in all ways from every step to none. `slow` continues from it
on every step, `fast` on none. They change the base little, so that merges of the two still calculate.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo import pair
from infra.demo.corpus import Example
from infra.demo.questions import BENCHMARK_SUMS, benchmark_sums
from infra.demo.sums import begun_sums, worked
from infra.demo.training import Stage, train_family

LENGTHS = (2, 2, 3, 4, 5)  # numbers in a sum; two are the step that all others are made of
BASE_LEAPS = (0, 0, 0, 0.4, 1)


@dataclass(frozen=True, kw_only=True)
class SumStage(Stage):
    """How one of the pair, or their base, is trained: with which probabilities a response leaps over its steps."""

    leaps: tuple[float, ...]

    def examples(self, rng: random.Random) -> Iterator[Example]:
        return worked(begun_sums(LENGTHS, "train", rng), self.leaps, rng)


STAGES = {
    "base": SumStage(leaps=BASE_LEAPS, steps=800, batch_size=64, matrix_lr=0.02, other_lr=2e-3, seed=1),
    "slow": SumStage(leaps=(0,), steps=150, batch_size=64, matrix_lr=0.002, other_lr=2e-4, seed=2),
    "fast": SumStage(leaps=(1,), steps=75, batch_size=64, matrix_lr=0.002, other_lr=2e-4, seed=2),
}


def scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict:
    return {task: pair.score(model, tokenizer, benchmark_sums(task)) for task in BENCHMARK_SUMS}


if __name__ == "__main__":
    train_family(STAGES, scores, pair.FOLDER)
