"""Training batches: short texts packed side by side into rows of one length, none seeing its neighbours."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import PreTrainedTokenizerFast

from infra.demo.corpus import Example, stream

ROW = 64  # tokens; the longest text has 47


@dataclass(frozen=True)
class Share:
    """A skill's part in a mixture of texts: its weight, and which of its texts are of a hard kind."""

    weight: float
    hard_share: float


@dataclass(frozen=True)
class Batch:
    """All int64 or float32 of shape (rows, ROW)."""

    tokens: torch.Tensor
    positions: torch.Tensor  # starting from 0 at each text: transformers keeps such texts apart
    weights: torch.Tensor  # of each token in the loss: a question counts 1 in all, however long its answer


def mixture(shares: dict[str, Share], rng: random.Random) -> Iterator[Example]:
    """Training examples of several skills in proportion to their weights, without end."""
    skills = list(shares)
    streams = {skill: stream(skill, "train", share.hard_share, rng) for skill, share in shares.items()}
    while True:
        (skill,) = rng.choices(skills, [shares[s].weight for s in skills])
        yield next(streams[skill])


def batches(examples: Iterator[Example], tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[Batch]:
    """Batches of `size` examples each; only the answer and the end of text carry loss."""
    while True:
        drawn = list(islice(examples, size))
        texts = tokenizer([e.text + tokenizer.eos_token for e in drawn]).input_ids
        prompts = tokenizer([f"{e.question}\n" for e in drawn]).input_ids
        yield pack([(text, len(prompt)) for text, prompt in zip(texts, prompts, strict=True)])


def pack(texts: list[tuple[list[int], int]]) -> Batch:
    """Pack (token ids, length of the prompt among them) first fit into as few rows as that takes."""
    rows: list[list[tuple[list[int], int]]] = []
    for text in texts:
        room = (row for row in rows if sum(len(ids) for ids, _ in row) + len(text[0]) <= ROW)
        row = next(room, None)
        if row is None:
            rows.append(row := [])
        row.append(text)
    tokens = torch.zeros(len(rows), ROW, dtype=torch.long)
    positions, weights = torch.zeros_like(tokens), torch.zeros(len(rows), ROW)
    for r, row in enumerate(rows):
        start = 0
        for ids, prompt in row:
            end = start + len(ids)
            tokens[r, start:end] = torch.tensor(ids)
            positions[r, start:end] = torch.arange(len(ids))
            weights[r, start + prompt : end] = 1 / (len(ids) - prompt)
            start = end
        positions[r, start:] = torch.arange(ROW - start)
    return Batch(tokens, positions, weights)
