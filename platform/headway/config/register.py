"""Settings of the step `register`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headway.config.base import INPUT, Config


class RegisterConfig(Config):
    """The step `register`: puts an encoder into the MLflow model registry."""

    model: str = Field(min_length=1, json_schema_extra=INPUT)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")] = "champion"
