"""What all settings are built from: their base class, the error for a bad one, and common types of number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.fields import FieldInfo

from headway.redaction import redacted

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]

OPERATIONAL: dict[str, JsonValue] = {"operational": True}
"""`json_schema_extra` of a setting that says how a step runs, not what comes out of it.

It may change while a step is not finished, which then continues, and after that, without a new run.
"""

INPUT: dict[str, JsonValue] = {"input": True}
"""`json_schema_extra` of a setting that names a file, a folder or a registered model: its content counts."""


class ConfigError(ValueError):
    """Something the user can fix: a bad value, a missing file, a file that is not text.

    Its message is one line that names the field, the value and what is allowed, without the passwords of
    addresses in it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class Config(BaseModel):
    """Base of all settings: an unknown key is an error, and settings do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    def nested_settings(self) -> Iterator[tuple[str, type[Config], dict[str, Any]]]:
        """The fields that hold some settings of another class, which is not their type.

        Yields:
            A field, the class, and all settings of it that are known: those written and those of this step.
        """
        yield from ()

    def result_settings(self) -> dict[str, Any]:
        """The settings that a result depends on, in JSON's types: all but the operational ones."""
        fields = type(self).model_fields.items()
        return {
            name: _plain(getattr(self, name)) for name, field in fields if not is_marked(field, OPERATIONAL)
        }


def is_marked(field: FieldInfo, mark: dict[str, JsonValue]) -> bool:
    """Whether a setting has the mark `OPERATIONAL` or `INPUT`."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and mark.items() <= extra.items()


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.result_settings()
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
