"""Settings of the step `static`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headway.config.base import INPUT, Config, Positive
from headway.config.sources import SourceConfig


class StaticConfig(Config):
    """The step `static`: makes a table with a vector for each token out of an encoder.

    What comes out has no layers, and so costs next to nothing to run. It gives embeddings, and `finetune`
    trains it, with a head if need be, like any encoder.
    """

    model: str = Field(
        min_length=1,
        description="an encoder: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    texts: SourceConfig = Field(
        description="texts like those it will be given, on which the result is compared with the original"
    )
    dimensions: Positive = Field(
        256,
        description="numbers in a vector: principal components of the encoder's; all of its columns if it "
        "has no more",
    )
    smoothing: Annotated[float, Field(gt=0.0)] | None = Field(
        1e-4,
        description="a token counts by smoothing / (smoothing + its frequency) (Arora et al. 2017); "
        "all count alike if null",
    )
    frequencies: Literal["rank", "texts"] = Field(
        "rank",
        description="of tokens: by Zipf's law from their place in the vocabulary, which tokenizers sort by "
        "frequency, or counted in every other text",
    )
    samples: Positive = Field(256, description="texts that are compared, if the source has as many")
    max_length: Annotated[int, Field(ge=8)] = Field(
        128, description="tokens after which a text that is compared is cut"
    )
