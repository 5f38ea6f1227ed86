"""Settings of the step `quantize`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headway.config.base import INPUT, Config, Positive
from headway.config.sources import SourceConfig


class QuantizeConfig(Config):
    """The step `quantize`: makes a trained encoder cheaper to run."""

    model: str = Field(min_length=1, description="an encoder: a folder or a step", json_schema_extra=INPUT)
    quantize: Literal["int8"] | None = Field(
        "int8", description="int8: on a CPU, layers multiply 8-bit integers; null: they multiply floats"
    )
    weights: Literal["float32", "int8", "int4"] = Field(
        "float32",
        description="how weights are kept, on disk and in memory; int8: a scale for each row; int4: one for "
        "every 32 numbers; without `quantize`, they become floats where they are multiplied, which is slower",
    )
    texts: SourceConfig = Field(
        description="texts like those it will be given; some set the scales, others measure the result"
    )
    samples: Positive = Field(128, description="texts for each of the two, if the source has as many")
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens after which a text is cut")
    min_cosine: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.98,
        description="lowest allowed mean cosine between the result's embeddings and the original's",
    )

    min_speedup: Annotated[float, Field(ge=0.0)] = Field(
        1.0,
        description="how many times as fast int8 must be here as the floats that are served otherwise; if it "
        "is less, layers keep multiplying floats, and the step says so; does nothing for packed weights",
    )

    @model_validator(mode="after")
    def _something_changes(self) -> QuantizeConfig:
        if self.quantize is None and self.weights == "float32":
            raise ValueError("quantize null with weights 'float32' changes nothing; set one of them")
        return self

    @property
    def weight_bits(self) -> int | None:
        """Bits of a packed weight; None if weights stay floats."""
        return {"float32": None, "int8": 8, "int4": 4}[self.weights]
