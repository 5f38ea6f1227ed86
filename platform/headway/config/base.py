"""What all settings are made of: their base, the kinds of number they share, and where text comes from."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class ConfigError(ValueError):
    """Something the user can put right: a bad value, a missing file, text that is no text.

    Its message is one line that names the field, the value and what is allowed.
    """


class Config(BaseModel):
    """Base of all settings: an unknown key is an error, and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class SourceConfig(Config):
    """Where text comes from."""

    source: str = Field(
        min_length=1,
        description="a folder of .txt, a .jsonl/.csv/.parquet file, a `datasets` name or path, or bbc-news",
    )
    text_column: str = "text"
    subset: str | None = Field(None, description="which configuration of a `datasets` source")
    split: str = Field("train", description="which split of a `datasets` source")
    encoding: str = Field("utf-8", description="of .txt, .jsonl and .csv files")
    held_out: Fraction = Field(0.2, gt=0.0, description="share of documents never trained on")
