"""How both demo families are trained: a base from scratch, then the others, each from the base.

Everything is seeded and on one thread: a machine gives the same weights every time; another CPU's rounding gives
slightly different ones.
"""

import copy
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from infra.demo.batches import batches
from infra.demo.corpus import Example
from infra.demo.family import new_model, save
from infra.demo.tokenizer import build_tokenizer

LOG_EVERY = 50  # steps


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one model is trained; a subclass says on what."""

    steps: int
    batch_size: int  # questions
    matrix_lr: float  # Muon, for the weight matrices of the layers
    other_lr: float  # AdamW, for embeddings, norms and the output
    seed: int

    def examples(self, rng: random.Random) -> Iterator[Example]:
        """What to train on, without end."""
        raise NotImplementedError


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
    texts = batches(stage.examples(random.Random(stage.seed)), tokenizer, stage.batch_size)
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


Score = Callable[[LlamaForCausalLM, PreTrainedTokenizerFast], dict]


def train_family(stages: dict[str, Stage], score: Score, folder: Path) -> None:
    """Train every model of `stages`, the `base` first, and write each to a folder of its name below `folder`.

    `training.json` beside them holds each model's `score`, stage, losses and the SHA-256 of its files.
    """
    torch.set_num_threads(1)
    tokenizer = build_tokenizer()
    models, record = {}, {}
    for name, stage in stages.items():
        model = new_model(tokenizer, stage.seed) if name == "base" else copy.deepcopy(models["base"])
        log = train(model, tokenizer, stage, name)
        models[name] = model.bfloat16().float()  # the others start from the base's weights as they are stored
        scores = score(models[name], tokenizer)
        print(f"{name}: {scores}", flush=True)
        record[name] = {"scores": scores, "stage": asdict(stage), "log": log}
    for name, model in models.items():
        # A tokenizer that has padded a batch would be stored with that padding: save a fresh one.
        record[name]["sha256"] = save(model, build_tokenizer(), folder / name)
    training = {"torch": torch.__version__, "members": record}
    (folder / "training.json").write_text(json.dumps(training, indent=1) + "\n")
