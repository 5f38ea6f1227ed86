"""Read files: texts, and rows of .jsonl, .json, .csv and .parquet."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.sources.streams import plain_name

FILE_TYPES = (".jsonl", ".json", ".csv", ".parquet")
_BYTE_ORDER_MARK = "\ufeff"


def read_text(path: Path, encoding: str, fallback: str | None = None, content: bytes | None = None) -> str:
    """The text of a file, without a byte order mark.

    Args:
        path: the file.
        encoding: of the text.
        fallback: the encoding of a text that is not in `encoding`; None refuses it.
        content: of the file, if it has been read.

    Raises:
        ConfigError: the file cannot be read, or is not text in that encoding.
    """
    try:
        raw = path.read_bytes() if content is None else content
        text = raw.decode(encoding)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except LookupError as error:
        raise ConfigError(f"encoding: {encoding!r} is not known to Python") from error
    except UnicodeDecodeError as error:
        if fallback is None:
            raise ConfigError(f"{path}: byte {error.start} is not {encoding} text; set encoding") from error
        text = raw.decode(fallback)
    if "\0" in text:
        raise ConfigError(f"{path}: not text (it holds zero bytes)")
    return text.removeprefix(_BYTE_ORDER_MARK)


def file_rows(path: Path, source: SourceConfig, content: bytes | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a .jsonl, .json, .csv or .parquet file.

    Args:
        path: the file.
        source: its encoding.
        content: of a file that is not .parquet, if it has been read and decompressed.

    Raises:
        ConfigError: the file has another type, or does not contain what its name says.
    """
    suffix = Path(plain_name(path.name)).suffix.lower()
    if suffix not in FILE_TYPES:
        allowed = ", ".join([".txt", *FILE_TYPES])
        raise ConfigError(f"source: {str(path)!r} has an unknown type; allowed: a folder, {allowed}")
    if suffix == ".parquet":
        return _parquet_rows(path)
    readers = {".csv": _csv_rows, ".json": _json_rows}
    return readers.get(suffix, _json_line_rows)(path, source.encoding, content)


def _json_rows(path: Path, encoding: str, content: bytes | None) -> Iterator[dict[str, Any]]:
    """Rows of a list of objects, of SQuAD's nested format, or of one object a line."""
    try:
        value = json.loads(read_text(path, encoding, content=content))
    except json.JSONDecodeError:
        return _json_line_rows(path, encoding, content)
    if isinstance(value, dict):
        value = value.get("data", [value])
    rows = [row for item in value for row in _flat_article(item)]
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, row {number}: not a JSON object")
    return iter(rows)


def _flat_article(item: Any) -> Iterator[Any]:
    """The questions of an article of SQuAD, each with its passage; anything else unchanged."""
    if not isinstance(item, dict) or "paragraphs" not in item:
        yield item
        return
    for paragraph in item["paragraphs"]:
        for question in paragraph["qas"]:
            answers = question.get("answers", [])
            columns = {name: [answer[name] for answer in answers] for name in ("text", "answer_start")}
            yield {**question, "context": paragraph["context"], "answers": columns}


def _json_line_rows(path: Path, encoding: str, content: bytes | None) -> Iterator[dict[str, Any]]:
    # Not splitlines(): a value may hold U+2028, U+0085 and other characters that end a line there.
    for number, line in enumerate(read_text(path, encoding, content=content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number}: not a JSON object")
        yield row


def _csv_rows(path: Path, encoding: str, content: bytes | None) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    try:
        yield from csv.DictReader(io.StringIO(read_text(path, encoding, content=content), newline=""))
    except csv.Error as error:
        raise ConfigError(f"{path}: not CSV: {error}") from error


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        for batch in table.iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not Parquet: {str(error).splitlines()[0]}") from error
