"""Read rows one after the other from a range of a plain file, and tell what is wrong with bad ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.parquet
import xxhash

from headway.config.base import ConfigError
from headway.data.predictions.inputs import Block, InputFile, reading
from headway.data.sources.streams import lines, open_stream

Row = dict[str, Any]

MAX_ROW_BYTES = 64 << 20
"""A longer line is a bad row, of which no more is held in memory."""
CHUNK_ROWS = 1024
"""Rows that are computed together, at most."""
CHUNK_BYTES = 4 << 20
"""Bytes of rows that are computed together, about, unless one is longer."""
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Columns:
    """What a row must have: a text in the column `text`, and none of the columns `added`."""

    text: str
    added: frozenset[str]


class Record(NamedTuple):
    """A row, or what is wrong with it.

    Attributes:
        values: the row; empty if it cannot be read at all.
        problem: what is wrong with it.
        end: the byte or row after it.
        line: the number of its line in the range, from 1, if that is what a problem is told of.
    """

    values: Row
    problem: str | None
    end: int
    line: int | None = None


class Chunk(NamedTuple):
    """Neighbouring records.

    Attributes:
        rows: the good ones.
        bad: (number in the range, from 0, the record) of the others.
        records: how many there are of both.
        end: the byte or row after the last.
        size: bytes of the good ones, about.
    """

    rows: list[Row]
    bad: list[tuple[int, Record]]
    records: int
    end: int
    size: int


def chunks(records: Iterable[Record], start: int, column: str) -> Iterator[Chunk]:
    """Records in chunks, whose ends depend only on what was read since `start`.

    Args:
        records: from there on.
        start: the byte or row where the range begins.
        column: with the text.
    """
    rows: list[Row] = []
    bad: list[tuple[int, Record]] = []
    end, count, size = start, 0, 0
    for number, record in enumerate(records):
        if record.problem is not None:
            bad.append((number, record))
        else:
            rows.append(record.values)
            size += max(record.end - end, len(record.values[column]))
        end, count = record.end, count + 1
        if max(len(rows), len(bad)) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield Chunk(rows, bad, count, end, size)
            rows, bad, count, size = [], [], 0, 0
    if count:
        yield Chunk(rows, bad, count, end, size)


class RecordReader:
    """Reads the records of a block.

    Args:
        file: a plain one.
        block: a range of it.
        columns: what rows must have.
        names: of the columns of a CSV file, if its first line is known.
        only_text: whether of Parquet only the column with the text is needed.

    Attributes:
        names: of the columns of a CSV or Parquet file, once records are read.
        lines: that were read.
        digest: of what was read, but of Parquet.
    """

    def __init__(
        self,
        file: InputFile,
        block: Block,
        columns: Columns,
        names: list[str] | None = None,
        only_text: bool = False,
    ) -> None:
        self._file, self._block, self._columns, self._only_text = file, block, columns, only_text
        self.names = names
        self.lines = 0
        self.digest = xxhash.xxh3_128()

    def __iter__(self) -> Iterator[Record]:
        """The records.

        Raises:
            ConfigError: the file cannot be read to the end of the range.
        """
        readers = {"lines": self._json_lines, "csv": self._csv, "parquet": self._parquet}
        with reading(self._file.address), open_stream(self._file.address) as stream:
            yield from readers[self._file.kind](stream)

    def _json_lines(self, stream: Any) -> Iterator[Record]:
        start, end = self._block.start, self._block.end
        for self.lines, (offset, line) in enumerate(lines(stream, start, end, MAX_ROW_BYTES), 1):
            if line is None:
                yield Record({}, _TOO_LONG, offset + 1, self.lines)
                continue
            self.digest.update(line)
            self.digest.update(b"\n")
            after = offset + len(line) + 1
            row = _json_row(line if offset else line.removeprefix(_BYTE_ORDER_MARK.encode()))
            if isinstance(row, dict):
                yield Record(row, problem_of(row, row, self._columns), after)
            elif row is not None:
                yield Record({}, row, after, self.lines)

    def _csv(self, stream: Any) -> Iterator[Record]:
        csv.field_size_limit(MAX_ROW_BYTES)
        feed = _CsvLines(lines(stream, self._block.start, None, MAX_ROW_BYTES), self.digest)
        end = self._block.end
        rows = csv.reader(feed)
        try:
            while end is None or feed.end < end:
                feed.problem = None
                if (fields := next(rows, None)) is None:
                    return
                if not fields:
                    continue
                if self.names is None:
                    self.names = [fields[0].removeprefix(_BYTE_ORDER_MARK), *fields[1:]]
                    if feed.problem:
                        raise ConfigError(f"{self._file.address}: {feed.problem}")
                    continue
                yield self._csv_record(self.names, fields, feed)
        except csv.Error as error:
            raise ConfigError(f"{self._file.address}: not CSV: {error}") from error

    def _csv_record(self, names: list[str], fields: list[str], feed: _CsvLines) -> Record:
        row: Row = dict.fromkeys(names) | dict(zip(names, fields, strict=False))
        problem = feed.problem
        if len(fields) > len(names):
            problem = "more fields than the first line has"
        return Record(row, problem or problem_of(row, row, self._columns), feed.end)

    def _parquet(self, stream: Any) -> Iterator[Record]:
        file = pyarrow.parquet.ParquetFile(stream, pre_buffer=False)
        self.names = list(file.schema_arrow.names)
        text = self._columns.text
        chosen = [name for name in self.names if name == text or not self._only_text]
        start, end = self._block.start, self._block.end
        at = 0
        for group in range(file.num_row_groups):
            after = at + file.metadata.row_group(group).num_rows
            if after <= start or (end is not None and at >= end):
                at = after
                continue
            for batch in file.iter_batches(CHUNK_ROWS, [group], chosen, use_threads=False):
                last = len(batch) if end is None else min(len(batch), end - at)
                skipped = min(max(start - at, 0), last) if last > 0 else len(batch)
                for number, row in enumerate(
                    batch[skipped : max(last, skipped)].to_pylist(), at + skipped + 1
                ):
                    yield Record(row, problem_of(row, self.names, self._columns), number)
                at += len(batch)


_TOO_LONG = f"longer than {MAX_ROW_BYTES >> 20} MB"


def _json_row(line: bytes) -> Row | str | None:
    """The object in a line, or what is wrong; None for a line of white space."""
    if not line.strip():
        return None
    try:
        row = json.loads(line.decode())
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "not text: it names half of a character"
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start})"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {getattr(error, 'msg', 'nested too deep')}"
    return row if isinstance(row, dict) else "not a JSON object"


class _CsvLines:
    """Gives csv its lines, and knows where the last one ended: csv takes none before it needs it."""

    def __init__(self, found: Iterator[tuple[int, bytes | None]], digest: xxhash.xxh3_128) -> None:
        self._found, self._digest = found, digest
        self.end = 0
        self.problem: str | None = None

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        offset, line = next(self._found)
        if line is None:
            raise csv.Error(f"a line is {_TOO_LONG}")
        if b"\0" in line:
            raise csv.Error("it holds zero bytes")
        self.end = offset + len(line) + 1
        self._digest.update(line)
        self._digest.update(b"\n")
        try:
            return line.decode() + "\n"
        except UnicodeDecodeError as error:
            self.problem = f"not UTF-8 text (byte {error.start} of its line)"
            return line.decode(errors="replace") + "\n"


def problem_of(row: Mapping[str, Any], names: Collection[str], columns: Columns) -> str | None:
    """What is wrong with a row that has columns of these names."""
    if columns.text not in names:
        return f"no column {columns.text!r}; it has: {', '.join(names)}"
    text = row[columns.text]
    if not isinstance(text, str):
        return f"column {columns.text!r} holds {type(text).__name__}, not text"
    if len(text) > MAX_ROW_BYTES:
        return f"column {columns.text!r} is {_TOO_LONG}"
    if not columns.added.isdisjoint(names):
        return f"column {min(columns.added.intersection(names))!r} is taken; rename it"
    return None
