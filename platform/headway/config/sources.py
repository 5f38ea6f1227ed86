"""Settings of a source of text: where it comes from and how it is read."""

from __future__ import annotations

from pydantic import Field

from headway.config.base import Config, Fraction


class SourceConfig(Config):
    """Where texts come from."""

    source: str = Field(
        min_length=1,
        description="a folder of .txt, a .jsonl/.csv/.parquet file, a `datasets` name or path, or bbc-news; "
        "of a corpus also a pattern such as `texts/**/*.jsonl.gz`, or an address such as `s3://bucket/texts`",
    )
    text_column: str = "text"
    subset: str | None = Field(None, description="the configuration of a `datasets` source")
    split: str = Field("train", description="the split of a `datasets` source")
    encoding: str = Field("utf-8", description="of .txt, .jsonl and .csv files")
    held_out: Fraction = Field(0.2, gt=0.0, description="fraction of the documents that is never trained on")
