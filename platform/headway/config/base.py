"""What all settings are built from: their base class, the error for a bad one, and common types of number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class ConfigError(ValueError):
    """Something the user can fix: a bad value, a missing file, a file that is not text.

    Its message is one line that names the field, the value and what is allowed.
    """


class Config(BaseModel):
    """Base of all settings: an unknown key is an error, and settings do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def nested_settings(self) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
        """The fields that hold some settings of another class, which is not their type.

        Yields:
            A field, the class, and all settings of it that are known: those written and those of this step.
        """
        yield from ()
