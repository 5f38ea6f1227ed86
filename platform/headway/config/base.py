"""What all settings are made of: their base class, its error, and the kinds of number they share."""

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
