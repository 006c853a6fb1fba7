"""Train the demo family from scratch: `python -m infra.demo.train`, about five minutes on one CPU core.

The base learns mostly easy questions of all three skills. An expert continues from it on all kinds of its own skill,
with a little of the base's mixture, as instruction tuning does, so that it keeps what it knew.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo import family
from infra.demo.batches import Share, mixture
from infra.demo.corpus import SKILLS, Example
from infra.demo.questions import benchmark
from infra.demo.training import Stage, train_family


@dataclass(frozen=True, kw_only=True)
class SkillStage(Stage):
    """How one member of the family is trained."""

    mixture: dict[str, Share]

    def examples(self, rng: random.Random) -> Iterator[Example]:
        return mixture(self.mixture, rng)


BASE_MIXTURE = {"math": Share(0.42, 0.25), "code": Share(0.32, 0.02), "instruct": Share(0.26, 0.03)}
BASE = SkillStage(mixture=BASE_MIXTURE, steps=500, batch_size=96, matrix_lr=0.02, other_lr=2e-3, seed=1)


def expert(skill: str, steps: int, own: float = 0.65) -> SkillStage:
    """A stage where `own` of the questions are the skill's, and the rest the base's mixture of the other skills."""
    others = {s: share for s, share in BASE_MIXTURE.items() if s != skill}
    total = sum(share.weight for share in others.values())
    kept = {s: Share((1 - own) * share.weight / total, share.hard_share) for s, share in others.items()}
    shares = {skill: Share(own, 0.75), **kept}
    return SkillStage(mixture=shares, steps=steps, batch_size=64, matrix_lr=0.007, other_lr=7e-4, seed=2)


EXPERTS = {"math": expert("math", 350), "code": expert("code", 300), "instruct": expert("instruct", 150)}


def scores(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict:
    return {skill: family.score(model, tokenizer, benchmark(skill)) for skill in SKILLS}


if __name__ == "__main__":
    train_family({"base": BASE, **EXPERTS}, scores, family.FOLDER)
