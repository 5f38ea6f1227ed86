"""Read rows of named columns, for tasks, from a folder, a file, a `datasets` name, or the demo corpus."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.sources.documents import BBC_NEWS, is_saved_dataset, load_dataset, read_documents
from headway.data.sources.files import file_rows
from headway.data.sources.streams import ReadError, compression_of, lines, open_stream, plain_name

_LINE_BYTES = 64 << 20


class Row(NamedTuple):
    """The values of the requested columns, and where they came from, for messages."""

    values: dict[str, Any]
    origin: str


def read_rows(source: SourceConfig, columns: Sequence[str], label_column: str) -> list[Row]:
    """Every row of a source, in a fixed order, with the requested columns.

    Args:
        source: what to read.
        columns: that every row must have.
        label_column: in a folder of .txt files, the column that gets the name of a file's subfolder.

    Raises:
        ConfigError: the source is missing, unreadable, without a column, or empty.
    """
    path = Path(source.source).expanduser()
    if source.source == BBC_NEWS or (path.is_dir() and not is_saved_dataset(path)):
        rows: Iterable[Row] = _document_rows(source, label_column)
    elif path.is_file():
        rows = (Row(row, f"{path}, row {n}") for n, row in enumerate(file_rows(path, source), start=1))
    else:
        rows = _dataset_rows(source)
    selected = [_with_columns(row, columns) for row in rows]
    if not selected:
        raise ConfigError(f"source: {source.source!r} holds no row")
    return selected


def columns_of(source: SourceConfig) -> list[str] | None:
    """The columns of a source's first row; None if it has no columns, as a folder of .txt, or is far away.

    Raises:
        ConfigError: the source is unreadable.
    """
    path = Path(source.source).expanduser()
    if path.is_dir() and is_saved_dataset(path):
        return list(load_dataset(source).column_names)
    name = plain_name(path.name).lower()
    if not path.is_file() or name.endswith(".txt"):
        return None
    if name.endswith(".jsonl") and (row := _first_json_row(path)) is not None:
        return list(row)
    if compression_of(path.name) is not None:
        return None
    row = next(file_rows(path, source), None)
    return None if row is None else list(row)


def _first_json_row(path: Path) -> dict[str, Any] | None:
    """The first row of a .jsonl file of any size, if it is one."""
    try:
        with open_stream(str(path)) as stream:
            row = json.loads(next(line for _, line in lines(stream, 0, None, _LINE_BYTES) if line))
    except (*ReadError, ValueError, StopIteration):
        return None
    return row if isinstance(row, dict) else None


def _document_rows(source: SourceConfig, label_column: str) -> Iterator[Row]:
    for document in read_documents(source):
        yield Row({source.text_column: document.text, label_column: document.label}, document.origin)


def _dataset_rows(source: SourceConfig) -> Iterator[Row]:
    dataset = load_dataset(source)
    names = {
        column: names for column, feature in dataset.features.items() if (names := _class_names(feature))
    }
    for number, row in enumerate(dataset, start=1):
        named = {column: _named(row[column], names[column]) for column in names}
        yield Row(row | named, f"{source.source}, row {number}")


def _class_names(feature: Any) -> list[str] | None:
    """Names of a column's classes, if it or its lists hold class numbers."""
    names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
    return list(names) if names else None


def _named(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    # Rows of public test splits have the number -1: their labels are secret.
    return names[value] if isinstance(value, int) and value >= 0 else None


def _with_columns(row: Row, columns: Sequence[str]) -> Row:
    for column in columns:
        if column not in row.values:
            has = ", ".join(map(str, row.values))
            raise ConfigError(f"{row.origin}: no column {column!r}; it has: {has}")
    return Row({column: row.values[column] for column in columns}, row.origin)


def text_of(row: Row, column: str) -> str:
    """The text in a column.

    Raises:
        ConfigError: it is something else, or nothing but white space.
    """
    value = row.values[column]
    if not isinstance(value, str):
        raise ConfigError(f"{row.origin}: column {column!r} holds {type(value).__name__}, not text")
    if not value.strip():
        raise ConfigError(f"{row.origin}: column {column!r} is empty")
    return value


def number_of(row: Row, column: str) -> float:
    """The finite number in a column.

    Raises:
        ConfigError: it holds something else.
    """
    value = row.values[column]
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ConfigError(f"{row.origin}: column {column!r} holds {value!r}, not a finite number")
    return number


def list_of(row: Row, column: str, separator: str | None) -> list[str]:
    """The list of texts in a column, or the parts of a text between separators (None: white space).

    Raises:
        ConfigError: it is neither a list nor a text.
    """
    value = row.values[column]
    if isinstance(value, str):
        return [part.strip() for part in value.split(separator) if part.strip()]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list) or any(item is None for item in value):
        raise ConfigError(f"{row.origin}: column {column!r} holds {value!r:.60}, not a list")
    return [str(item) for item in value]
