"""Settings of the step `corpus`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from headway.config.base import INPUT
from headway.config.sources import SourceConfig


class CorpusConfig(SourceConfig):
    """The step `corpus`: text → tokenizer → token store."""

    vocab_size: Annotated[int, Field(ge=64, le=1_000_000)] = 30_000
    lowercase: bool = True
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = Field(
        "en",
        description="of the texts, as an ISO 639 code: its abbreviations do not end a sentence; sentences of "
        "other languages and scripts are found too",
    )
    max_length: Annotated[int, Field(ge=8, le=8192)] = 128
    tokenizer: Path | None = Field(
        None, description="folder of a tokenizer, instead of training one", json_schema_extra=INPUT
    )
    extend_tokenizer: Annotated[int, Field(ge=0)] = Field(
        0,
        description="how many of the corpus' words are added whole that `tokenizer` splits or does not know",
    )

    @model_validator(mode="after")
    def _extends_something(self) -> CorpusConfig:
        if self.extend_tokenizer and self.tokenizer is None:
            raise ValueError("extend_tokenizer needs a tokenizer to extend")
        return self
