"""Settings of the step `corpus`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from headway.config.base import INPUT, OPERATIONAL, Positive
from headway.config.corpora.cleaning import CleaningConfig
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
    tokenizer_sample_mb: Positive = Field(
        256, description="a tokenizer is trained on about so many MB of the texts, chosen by their own hash"
    )
    clean: CleaningConfig | None = Field(
        None, description="repair texts and leave bad ones out; if not set, texts are taken as they are"
    )
    near_duplicates: Annotated[float, Field(ge=0.5, lt=1.0)] | None = Field(
        None,
        description="drop texts that share about this fraction of their runs of five words with an earlier "
        "text (Jaccard, by MinHash), and any that may be so like a held-out one; if not set, only exact "
        "copies are dropped",
    )
    on_bad_input: Literal["fail", "skip"] = Field(
        "fail", description="what cannot be read as text ends the step, or is counted and left out"
    )
    max_document_mb: Positive = Field(128, description="a longer document is bad input")
    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="prepare the corpus in this process, or on all cores of the cluster by Ray Data, with "
        "the same result; `auto` takes Ray from 256 MB of sources on",
        json_schema_extra=OPERATIONAL,
    )

    @model_validator(mode="after")
    def _extends_something(self) -> CorpusConfig:
        if self.extend_tokenizer and self.tokenizer is None:
            raise ValueError("extend_tokenizer needs a tokenizer to extend")
        return self
