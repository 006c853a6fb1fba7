"""What a recipe calibrates its base on. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

SOURCES = ("texts", "dataset", "token_blocks")


class CalibrationChoice(BaseModel):
    """Texts (a JSONL file), a field of a data set (a hub id), or token blocks (a safetensors file): one of the three.

    The published setting (arXiv 2502.02421) is 256 samples of the Pile's validation split in blocks of 512 tokens.
    Token blocks are taken as they are. ACM takes each text, or block, as a sample of its own, cut to `longest` tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    texts: str | None = None
    dataset: str | None = None
    token_blocks: str | None = None
    split: str = "validation"
    field: str = "text"
    samples: int = Field(256, ge=1)
    block: int = Field(512, ge=2)
    longest: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> CalibrationChoice:
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(
                "name one of `texts` (a JSONL file), `dataset` (a hub id) and `token_blocks` (a safetensors file), "
                f"found {', '.join(named) or 'none'}"
            )
        given = self.model_fields_set.intersection({"samples", "block"} if self.token_blocks else set())
        if given:
            raise ValueError(f"{', '.join(sorted(given))}: token_blocks are taken as they are; leave it out")
        return self
