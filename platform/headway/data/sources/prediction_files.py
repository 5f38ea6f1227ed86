"""Read files of rows that contain a text, and write the rows with a model's answers added."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.sources.files import file_rows

Row = dict[str, Any]

OUTPUT_TYPES = (".csv", ".jsonl", ".parquet")
_SHOWN = 10


def check_output(path: Path) -> None:
    """Refuse an output path that cannot be written to, before anything is computed.

    Raises:
        ConfigError: the path has an unknown type, its folder does not exist, or the file exists already.
    """
    if path.suffix.lower() not in OUTPUT_TYPES:
        raise ConfigError(f"--output: {str(path)!r} has an unknown type; allowed: {', '.join(OUTPUT_TYPES)}")
    if not path.parent.is_dir():
        raise ConfigError(f"--output: the folder {str(path.parent)!r} does not exist")
    if path.exists():
        raise ConfigError(f"--output: {str(path)!r} exists already; nothing is overwritten")


def read_rows(path: Path, column: str, added: Iterable[str]) -> list[Row]:
    """All rows of a .csv, .jsonl, .json or .parquet file.

    Args:
        path: the file.
        column: the column with the text; every row must have it.
        added: columns that will be added to the rows, which must not have them yet.

    Raises:
        ConfigError: the file does not exist or does not contain what its name says, or rows have no text;
            then there is a line for each of the first ten.
    """
    if not path.is_file():
        raise ConfigError(f"--input: {str(path)!r} does not exist")
    rows = list(file_rows(path, SourceConfig(source=str(path), text_column=column)))
    if not rows:
        raise ConfigError(f"--input: {str(path)!r} holds no row")
    problems = [
        f"{path}, row {number}: {problem}"
        for number, row in enumerate(rows, 1)
        if (problem := _problem(row, column, set(added)))
    ]
    if problems:
        more = [f"and {len(problems) - _SHOWN:,} rows more"] if len(problems) > _SHOWN else []
        raise ConfigError("\n".join([*problems[:_SHOWN], *more]))
    return rows


def _problem(row: Row, column: str, added: set[str]) -> str | None:
    if None in row:
        return "more fields than the first line has"
    if column not in row:
        return f"no column {column!r}; it has: {', '.join(row)}"
    if not isinstance(row[column], str):
        return f"column {column!r} holds {type(row[column]).__name__}, not text"
    taken = added & set(row)
    return f"column {min(taken)!r} is taken; rename it" if taken else None


def as_table(rows: Sequence[Row]) -> pyarrow.Table:
    """The rows as a table for Parquet.

    Raises:
        ConfigError: a column has values of several types.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        return pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--output: these rows do not fit into Parquet: {reason}; use .jsonl") from error


def write_rows(path: Path, rows: Sequence[Row], answers: Sequence[Row]) -> None:
    """Write each row with its answers, atomically, in the format that the file's name says."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    merged = [{**row, **answer} for row, answer in zip(rows, answers, strict=True)]
    match path.suffix.lower():
        case ".csv":
            _write_csv(draft, merged)
        case ".parquet":
            pyarrow.parquet.write_table(as_table(merged), draft)
        case _:
            lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in merged)
            with draft.open("w", encoding="utf-8") as file:
                file.writelines(lines)
    draft.replace(path)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(names))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
