"""Train the demo family from scratch: `python -m infra.demo.train`, about five minutes on one CPU core.

The base learns mostly easy questions of all three skills. An expert continues from it on all kinds of its own skill,
with a little of the base's mixture, as instruction tuning does, so that it keeps what it knew. Everything is seeded:
one machine gives the same weights every time; another CPU's rounding gives slightly different ones.
"""

import copy
import json
import random
import time
from dataclasses import asdict, dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo import family
from infra.demo.batches import Share, batches, mixture
from infra.demo.corpus import SKILLS
from infra.demo.questions import benchmark
from infra.demo.tokenizer import build_tokenizer

LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class Stage:
    """How one member of the family is trained."""

    mixture: dict[str, Share]
    steps: int
    batch_size: int  # questions
    matrix_lr: float  # Muon, for the weight matrices of the layers
    other_lr: float  # AdamW, for embeddings, norms and the output
    seed: int


BASE_MIXTURE = {"math": Share(0.42, 0.25), "code": Share(0.32, 0.02), "instruct": Share(0.26, 0.03)}
BASE = Stage(BASE_MIXTURE, steps=500, batch_size=96, matrix_lr=0.02, other_lr=2e-3, seed=1)


def expert(skill: str, steps: int, own: float = 0.65) -> Stage:
    """A stage where `own` of the questions are the skill's, and the rest the base's mixture of the other skills."""
    others = {s: share for s, share in BASE_MIXTURE.items() if s != skill}
    total = sum(share.weight for share in others.values())
    kept = {s: Share((1 - own) * share.weight / total, share.hard_share) for s, share in others.items()}
    return Stage({skill: Share(own, 0.75), **kept}, steps, batch_size=64, matrix_lr=0.007, other_lr=7e-4, seed=2)


EXPERTS = {"math": expert("math", 350), "code": expert("code", 300), "instruct": expert("instruct", 150)}


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, stage: Stage, name: str) -> list[dict]:
    """Train `model` in place; returns the log, a row with step and mean loss for every `LOG_EVERY` steps."""
    matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (".layers." in n and p.ndim == 2)]
    optimizers = (
        torch.optim.Muon(matrices, lr=stage.matrix_lr, weight_decay=0.01),
        torch.optim.AdamW(others, lr=stage.other_lr, betas=(0.9, 0.98), weight_decay=0.01),
    )
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 30, 1 - 0.95 * step / stage.steps))
        for o in optimizers
    ]
    texts = batches(mixture(stage.mixture, random.Random(stage.seed)), tokenizer, stage.batch_size)
    log, losses, started = [], [], time.monotonic()
    model.train()
    for step in range(1, stage.steps + 1):
        batch = next(texts)
        logits = model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
        loss = (loss * batch.weights[:, 1:].flatten()).sum() / stage.batch_size
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % LOG_EVERY == 0:
            log.append({"step": step, "loss": round(sum(losses) / len(losses), 4)})
            seconds = time.monotonic() - started
            print(f"{name}: step {step}/{stage.steps}, loss {log[-1]['loss']}, {seconds:.0f} s", flush=True)
            losses.clear()
    return log


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    models, record = {}, {}
    for name, stage in {"base": BASE, **EXPERTS}.items():
        model = family.new_model(tokenizer, stage.seed) if name == "base" else copy.deepcopy(models["base"])
        log = train(model, tokenizer, stage, name)
        models[name] = model.bfloat16().float()  # the experts start from the weights as they are stored
        scores = {skill: family.score(models[name], tokenizer, benchmark(skill)) for skill in SKILLS}
        print(f"{name}: {scores}", flush=True)
        record[name] = {"scores": scores, "stage": asdict(stage), "log": log}
    for name, model in models.items():
        # A tokenizer that has padded a batch would be stored with that padding: save a fresh one.
        record[name]["sha256"] = family.save(model, build_tokenizer(), family.FOLDER / name)
    training = {"torch": torch.__version__, "members": record}
    (family.FOLDER / "training.json").write_text(json.dumps(training, indent=1) + "\n")


if __name__ == "__main__":
    main()
