"""Read all rows once before any is computed: count them, find the bad ones, and cut them into parts.

Every block is surveyed without the others, by any process, in bounded memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow.parquet
import xxhash

from headway.config.base import ConfigError
from headway.data.predictions.inputs import Block, InputFile, reading
from headway.data.predictions.records import Chunk, Columns, RecordReader, Row, chunks
from headway.data.sources.streams import open_stream

SHOWN = 10
"""Bad rows that are named."""
_HASHED = 1 << 20


class Part(NamedTuple):
    """Rows that are computed and written together: those of a range of a file that are not bad.

    Attributes:
        file: index of the file.
        start: the byte or row where the range begins.
        end: the byte or row after it.
        rows: how many are in it.
    """

    file: int
    start: int
    end: int
    rows: int


class BadRow(NamedTuple):
    """A bad row: its number, or that of its line, in the block, from 1, and what is wrong with it."""

    number: int
    is_line: bool
    problem: str


@dataclass
class BlockSurvey:
    """What is in a block.

    Attributes:
        parts: in order.
        records: rows, bad ones included.
        lines: of a file of lines.
        bad: how many rows are bad.
        named: the first of these.
        names: of the columns, in the order in which they appear.
        schema: of the columns; None if it was not asked for, or the rows do not fit into one.
        misfit: why the rows do not fit into Parquet.
        digest: of the content.
    """

    parts: list[Part] = field(default_factory=list)
    records: int = 0
    lines: int = 0
    bad: int = 0
    named: list[BadRow] = field(default_factory=list)
    names: dict[str, None] = field(default_factory=dict)
    schema: pyarrow.Schema | None = None
    misfit: str | None = None
    digest: str = ""


class Surveyor:
    """Surveys blocks of some files.

    Args:
        files: plain ones.
        columns: what rows must have.
        part_rows: rows of a part at most.
        part_bytes: bytes of the rows of a part, about; a part ends where a chunk does.
        with_schema: whether rows must fit into Parquet.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        columns: Columns,
        part_rows: int,
        part_bytes: int,
        with_schema: bool,
    ) -> None:
        self._files, self._columns = files, columns
        self._part_rows, self._part_bytes, self._with_schema = part_rows, part_bytes, with_schema

    def __call__(self, block: Block) -> BlockSurvey:
        """Read a block.

        Raises:
            ConfigError: it cannot be read.
        """
        file = self._files[block.file]
        reader = RecordReader(file, block, self._columns, only_text=True)
        found = BlockSurvey()
        start, rows, size = block.start, 0, 0
        for chunk in chunks(reader, block.start, self._columns.text):
            self._add(chunk, found, file)
            rows, size = rows + len(chunk.rows), size + chunk.size
            if rows >= self._part_rows or size >= self._part_bytes:
                found.parts.append(Part(block.file, start, chunk.end, rows))
                start, rows, size = chunk.end, 0, 0
            end = chunk.end
        if rows:
            found.parts.append(Part(block.file, start, end, rows))
        found.lines = reader.lines
        found.digest = reader.digest.hexdigest()
        if file.kind == "parquet":
            self._add_parquet(file, block, found)
        elif reader.names is not None:
            found.names = dict.fromkeys(reader.names)
        return found

    def _add(self, chunk: Chunk, found: BlockSurvey, file: InputFile) -> None:
        for number, record in chunk.bad[: SHOWN - len(found.named)]:
            shown = record.line if record.line is not None else number + 1
            assert record.problem is not None
            found.named.append(BadRow(shown, record.line is not None, record.problem))
        found.bad += len(chunk.bad)
        found.records += chunk.records
        if file.kind == "parquet" or not chunk.rows:
            return
        found.names |= dict.fromkeys(name for row in chunk.rows for name in row)
        if self._with_schema and found.misfit is None:
            try:
                found.schema = joined_schema([found.schema, _schema_of(chunk.rows)])
            except (pyarrow.ArrowException, OverflowError) as error:
                found.schema, found.misfit = None, str(error).splitlines()[0]

    def _add_parquet(self, file: InputFile, block: Block, found: BlockSurvey) -> None:
        with reading(file.address), open_stream(file.address) as stream:
            metadata = pyarrow.parquet.read_metadata(stream)
            found.schema = metadata.schema.to_arrow_schema().remove_metadata()
            found.names = dict.fromkeys(found.schema.names)
            found.digest = _digest_of_groups(stream, metadata, block)


def joined_schema(schemas: Sequence[pyarrow.Schema | None]) -> pyarrow.Schema:
    """One schema for the rows of several; a column of whole numbers here and others there holds any number.

    Raises:
        pyarrow.ArrowException: a column has types that have none in common.
    """
    known = [schema for schema in schemas if schema is not None]
    return pyarrow.unify_schemas(known, promote_options="permissive")


def _schema_of(rows: Sequence[Row]) -> pyarrow.Schema:
    names = dict.fromkeys(name for row in rows for name in row)
    return pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]).schema


def _digest_of_groups(stream: object, metadata: pyarrow.parquet.FileMetaData, block: Block) -> str:
    """A digest of the bytes of the row groups in a block."""
    digest = xxhash.xxh3_128()
    at = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if at >= block.start and (block.end is None or at < block.end):
            for number in range(group.num_columns):
                column = group.column(number)
                start = column.dictionary_page_offset or column.data_page_offset
                _hash_bytes(stream, start, column.total_compressed_size, digest)
        at += group.num_rows
    return digest.hexdigest()


def _hash_bytes(stream: object, start: int, count: int, digest: xxhash.xxh3_128) -> None:
    stream.seek(start)  # type: ignore[attr-defined]
    while count and (content := stream.read(min(count, _HASHED))):  # type: ignore[attr-defined]
        digest.update(content)
        count -= len(content)


class Rows(NamedTuple):
    """What is known of all rows, from the surveys of all blocks.

    Attributes:
        parts: in order.
        bad: how many rows are bad.
        problems: a line for each of the first of them.
        headers: of each file, the names of its columns.
        schema: of the columns of all, if it was asked for.
        digest: of the content.
    """

    parts: list[Part]
    bad: int
    problems: list[str]
    headers: list[list[str]]
    schema: pyarrow.Schema | None
    digest: str


def put_together(
    files: Sequence[InputFile], blocks: Sequence[Block], surveys: Sequence[BlockSurvey], shown: Sequence[str]
) -> Rows:
    """What is known of all rows.

    Args:
        files: that were surveyed.
        blocks: of them, in order.
        surveys: one for each block.
        shown: the name of each file in problems.

    Raises:
        ConfigError: they do not fit into Parquet, and that was asked for.
    """
    parts: list[Part] = []
    problems: list[str] = []
    headers: list[dict[str, None]] = [{} for _ in files]
    digest = xxhash.xxh3_128()
    file, records, lines = -1, 0, 0
    for block, found in zip(blocks, surveys, strict=True):
        if block.file != file:
            file, records, lines = block.file, 0, 0
        for number, is_line, problem in found.named[: SHOWN - len(problems)]:
            at = f"line {lines + number}" if is_line else f"row {records + number}"
            problems.append(f"{shown[file]}, {at}: {problem}")
        parts += found.parts
        headers[file] |= found.names
        records, lines = records + found.records, lines + found.lines
        digest.update(f"{files[file].kind} {found.digest}".encode())
    return Rows(
        parts,
        sum(found.bad for found in surveys),
        problems,
        [list(names) for names in headers],
        _common_schema(surveys),
        digest.hexdigest(),
    )


def _common_schema(surveys: Sequence[BlockSurvey]) -> pyarrow.Schema | None:
    reason = next((found.misfit for found in surveys if found.misfit is not None), None)
    schemas = [found.schema for found in surveys if found.schema is not None]
    try:
        if reason is None:
            return joined_schema(schemas) if schemas else None
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0]
    raise ConfigError(f"--output: these rows do not fit into Parquet: {reason}; use .jsonl")
