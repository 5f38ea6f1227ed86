"""Settings of the step `compress`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headway.config.base import Config, Positive
from headway.config.sources import SourceConfig


class CompressConfig(Config):
    """The step `compress`: a trained encoder made cheaper to run."""

    model: str = Field(min_length=1, description="an encoder with BERT's layers: a folder or a step")
    quantize: Literal["int8"] = Field(
        "int8", description="int8: layers multiply 8-bit integers where a processor serves them"
    )
    texts: SourceConfig = Field(
        description="like those it will be given; some fix the scales, on others the result is measured"
    )
    samples: Positive = Field(128, description="texts for each of the two, if the source has so many")
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens a text is cut at")
    min_cosine: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.98, description="mean cosine between its embeddings and the original's below which it is refused"
    )
