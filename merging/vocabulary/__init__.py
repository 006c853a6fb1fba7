"""Which tensors have a row per token, and whether a model ties its two."""

from collections.abc import Container, Mapping

EMBEDDINGS = ("embed_tokens.weight", "embed_in.weight", "wte.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "lm_head.bias", "embed_out.weight")
HEAD = "lm_head.weight"


def is_embedding(name: str) -> bool:
    """Whether a tensor turns tokens into vectors."""
    return name.endswith(EMBEDDINGS)


def has_token_rows(name: str) -> bool:
    """Whether a tensor's first dimension counts tokens."""
    return name.endswith(EMBEDDINGS) or name in HEADS


def embedding_of(names) -> str | None:
    """The name of the embedding among a model's tensors."""
    return next((name for name in sorted(names) if is_embedding(name)), None)


def is_tied(config: Mapping, names: Container[str]) -> bool:
    """Whether a model's head is its embedding.

    The default differs by architecture, so where the config is silent, a head of its own among the tensors decides.
    """
    return bool(config.get("tie_word_embeddings", HEAD not in names and "embed_out.weight" not in names))
