"""Tiny models with tokenizers of their own."""

import json
from pathlib import Path

import pytest
import torch

from tests.merging.vocabulary.models import (
    TABLES,
    tokenizer,
)


@pytest.fixture
def make(make_model):
    """`make(name, seed, rows=16, added=(), change=None, config={}, **tokenizer)`: a model with a tokenizer."""

    def make(name, seed, rows=16, added=(), change=None, config=None, **keys) -> Path:
        def resize(tensors):
            generator = torch.Generator().manual_seed(seed + 1000)
            for table in TABLES:
                tensors[table] = torch.randn(rows, 8, generator=generator) * 0.1
            if change:
                change(tensors)

        folder = make_model(name, seed, change=resize, vocab_size=rows, **(config or {}))
        for file, data in tokenizer(added, **keys).items():
            (folder / file).write_text(json.dumps(data))
        return folder

    return make


@pytest.fixture
def family(make):
    """A base, and two experts that added one token in common, under different ids, and one of their own each."""
    return {
        "base": make("base", 0),
        "one": make("one", 1, rows=18, added=["<tool>", "<pad>"]),
        "two": make("two", 2, rows=18, added=["<pad>", "<eot>"]),
    }
