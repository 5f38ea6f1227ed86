"""Read the documents of a block one by one, and tell what cannot be read."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow.parquet

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.config.sources import SourceConfig
from headway.data.sources.blocks import Block, File
from headway.data.sources.documents import BBC_NEWS, load_dataset
from headway.data.sources.files import file_rows
from headway.data.sources.streams import ReadError, lines, open_stream, plain_name, read_limited

_BYTE_ORDER_MARK = "\ufeff"
_BATCH_ROWS = 256


class BadInput(NamedTuple):
    """Something that is not a document: what is wrong with it, in general and in words, and where it is."""

    kind: str
    problem: str
    origin: str


def read_block(block: Block, config: CorpusConfig) -> Iterator[str | BadInput]:
    """The texts of a block, in order, and what cannot be read, at its place among them.

    A file that breaks off gives what was read before that.

    Raises:
        ConfigError: `encoding` is not known to Python.
    """
    if block.kind == "texts":
        for file in block.files:
            yield _text_file(file, config)
        return
    readers = {"lines": _lines, "rows": _rows, "parquet": _parquet, "dataset": _dataset}
    place = block.files[0].address if block.files else config.source
    try:
        yield from readers[block.kind](block, config)
    except ReadError as error:
        yield BadInput("unreadable", f"cannot be read: {_reason(error)}", place)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _decoded(content: bytes, config: CorpusConfig, origin: str) -> str | BadInput:
    try:
        return content.decode(config.encoding)
    except LookupError as error:
        raise ConfigError(f"encoding: {config.encoding!r} is not known to Python") from error
    except UnicodeDecodeError as error:
        if config.source == BBC_NEWS:  # a few older files, in an encoding in which every byte is a character
            return content.decode("latin-1")
        problem = f"byte {error.start} is not {config.encoding} text; set encoding"
        return BadInput("wrong encoding", problem, origin)


def _limit(config: CorpusConfig) -> int:
    return config.max_document_mb << 20


def _too_long(config: CorpusConfig, origin: str) -> BadInput:
    return BadInput("too long", f"longer than max_document_mb = {config.max_document_mb}", origin)


def _text_file(file: File, config: CorpusConfig) -> str | BadInput:
    try:
        content = read_limited(file.address, _limit(config))
    except ReadError as error:
        return BadInput("unreadable", f"cannot be read: {_reason(error)}", file.address)
    if content is None:
        return _too_long(config, file.address)
    text = _decoded(content, config, file.address)
    if isinstance(text, str):
        if "\0" in text:
            return BadInput("not text", "not text (it holds zero bytes)", file.address)
        return text.removeprefix(_BYTE_ORDER_MARK)
    return text


def _lines(block: Block, config: CorpusConfig) -> Iterator[str | BadInput]:
    address = block.files[0].address
    with open_stream(address) as stream:
        for number, (offset, line) in enumerate(lines(stream, block.start, block.end, _limit(config)), 1):
            # Only a block at the beginning of its file knows the numbers of lines.
            origin = f"{address}, byte {offset}" if block.start else f"{address}, line {number}"
            if line is None:
                yield _too_long(config, origin)
            elif line.strip():
                yield _json_line(line, config, origin)


def _json_line(line: bytes, config: CorpusConfig, origin: str) -> str | BadInput:
    text = _decoded(line, config, origin)
    if not isinstance(text, str):
        return text
    text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(text)  # takes NaN and numbers of any size too
        except (json.JSONDecodeError, RecursionError) as error:
            return BadInput("not JSON", f"not JSON: {getattr(error, 'msg', 'nested too deep')}", origin)
    if not isinstance(row, dict):
        return BadInput("not JSON", "not a JSON object", origin)
    return _text_of(row, config, origin)


def _text_of(row: dict[str, Any], config: CorpusConfig, origin: str) -> str | BadInput:
    column = config.text_column
    if column not in row:
        problem = f"no column {column!r}; it has: {', '.join(map(str, row))}"
        return BadInput("no text", problem, origin)
    text = row[column]
    if not isinstance(text, str):
        return BadInput("no text", f"column {column!r} holds {type(text).__name__}, not text", origin)
    if len(text) > _limit(config):
        return _too_long(config, origin)
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may name halves of characters
        return BadInput("wrong encoding", f"column {column!r} holds half a character", origin)
    return text


def _rows(block: Block, config: CorpusConfig) -> Iterator[str | BadInput]:
    address = block.files[0].address
    try:
        if plain_name(address).lower().endswith(".csv"):
            rows = _csv_rows(address, config)
        else:
            content = read_limited(address, _limit(config))
            if content is None:
                yield _too_long(config, address)
                return
            rows = file_rows(Path(address), config, content)
        for number, row in enumerate(rows, start=1):
            yield _text_of(row, config, f"{address}, row {number}")
    except ConfigError as error:
        if str(error).startswith("encoding:"):
            raise
        yield BadInput("not rows", str(error).removeprefix(f"{address}: "), address)


def _csv_rows(address: str, config: CorpusConfig) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(_limit(config))
    encoding = "utf-8-sig" if config.encoding.lower() in ("utf-8", "utf8") else config.encoding
    try:
        with open_stream(address) as stream, io.TextIOWrapper(stream, encoding, newline="") as text:
            yield from csv.DictReader(text)
    except LookupError as error:
        raise ConfigError(f"encoding: {config.encoding!r} is not known to Python") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{address}: not {config.encoding} text to its end; set encoding") from error
    except csv.Error as error:
        raise ConfigError(f"{address}: not CSV: {error}") from error


def _parquet(block: Block, config: CorpusConfig) -> Iterator[str | BadInput]:
    address = block.files[0].address
    with open_stream(address) as stream:
        file = pyarrow.parquet.ParquetFile(stream)
        if config.text_column not in file.schema_arrow.names:
            has = ", ".join(file.schema_arrow.names)
            yield BadInput("no text", f"no column {config.text_column!r}; it has: {has}", address)
            return
        groups = range(block.start, file.num_row_groups if block.end is None else block.end)
        number = itertools.count(sum(file.metadata.row_group(i).num_rows for i in range(block.start)) + 1)
        for batch in file.iter_batches(_BATCH_ROWS, list(groups), [config.text_column], use_threads=False):
            for text in batch.column(0).to_pylist():
                yield _text_of({config.text_column: text}, config, f"{address}, row {next(number)}")


def _dataset(block: Block, config: CorpusConfig) -> Iterator[str | BadInput]:
    dataset = _loaded(config.source, config.subset, config.split)
    assert block.end is not None
    for start in range(block.start, block.end, _BATCH_ROWS):
        columns = dataset[start : min(start + _BATCH_ROWS, block.end)]
        if config.text_column not in columns:
            has = ", ".join(columns)
            yield BadInput("no text", f"no column {config.text_column!r}; it has: {has}", config.source)
            return
        for number, text in enumerate(columns[config.text_column], start + 1):
            yield _text_of({config.text_column: text}, config, f"{config.source}, row {number}")


@lru_cache(maxsize=1)
def _loaded(source: str, subset: str | None, split: str) -> Any:
    """The data set, which `datasets` maps from disk; loaded once a process."""
    return load_dataset(SourceConfig(source=source, subset=subset, split=split))
