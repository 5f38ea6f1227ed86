"""Settings of the step `export`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headway.config.base import INPUT, Config, Positive
from headway.config.sources import SourceConfig

ExportFormat = Literal["onnx", "openvino"]


class ExportConfig(Config):
    """The step `export`: writes a model's graph for another runtime, and checks it against PyTorch."""

    model: str = Field(
        min_length=1,
        description="an encoder, with or without a head: a folder, a step, or models:/name@alias",
        json_schema_extra=INPUT,
    )
    format: ExportFormat = Field(
        description="onnx: `onnx/model.onnx`, needs the extra onnx; openvino: `openvino/openvino_model.xml`, "
        "needs the extra openvino"
    )
    texts: SourceConfig = Field(description="texts like those it will be given, on which it is checked")
    samples: Positive = Field(1000, description="texts to check it on, if the source has as many")
    max_length: Annotated[int, Field(ge=8)] = Field(128, description="tokens after which a text is cut")
    tolerance: Annotated[float, Field(gt=0.0)] = Field(
        1e-3, description="by how much a number that it gives may differ from PyTorch's, both in float32"
    )
