"""What is to be computed: files, and their rows in parts. It is kept beside the parts that are finished."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow

from headway.data.predictions.inputs import InputFile
from headway.data.predictions.survey import Part, Rows
from headway.data.predictions.work_folder import PARTS, WorkFolder

_NAME = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What is to be computed.

    Attributes:
        look: a digest of what the plan was made from: names, sizes and times of files, the model, settings.
        key: a digest of all that the output depends on: the content of rows, the model, settings.
        files: plain ones.
        rows: what is known of their rows.
    """

    look: str
    key: str
    files: Sequence[InputFile]
    rows: Rows

    @property
    def count(self) -> int:
        """Rows to compute."""
        return sum(part.rows for part in self.rows.parts)

    def write(self, work: WorkFolder) -> None:
        """Keep the plan; parts of another one are deleted."""
        kept = Plan.read(work)
        if kept is not None and kept.key != self.key:
            work.remove(PARTS)
        content: dict[str, Any] = {
            "look": self.look,
            "key": self.key,
            "files": self.files,
            **self.rows._asdict(),
            "schema": _text_of(self.rows.schema),
        }
        work.write(_NAME, json.dumps(content).encode())

    @classmethod
    def read(cls, work: WorkFolder) -> Plan | None:
        """The plan of a run that was stopped; None if there is none."""
        content = work.read(_NAME)
        if content is None:
            return None
        try:
            kept = json.loads(content)
            rows = Rows(
                [Part(*part) for part in kept["parts"]],
                kept["bad"],
                kept["problems"],
                kept["headers"],
                _schema_of(kept["schema"]),
                kept["digest"],
            )
            return cls(kept["look"], kept["key"], [InputFile(*file) for file in kept["files"]], rows)
        except (ValueError, KeyError, TypeError):  # another release's
            return None

    def finished(self, work: WorkFolder, suffix: str) -> set[int]:
        """Indices of the parts that are there."""
        names = work.names(PARTS)
        return {i for i in range(len(self.rows.parts)) if f"part-{i:06}{suffix}" in names}


def _text_of(schema: pyarrow.Schema | None) -> str | None:
    return None if schema is None else base64.b64encode(schema.serialize().to_pybytes()).decode()


def _schema_of(text: str | None) -> pyarrow.Schema | None:
    if text is None:
        return None
    return pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(text)))
