"""Write rows with a model's answers: the rows of a part, and all parts one after the other."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet

from headway.config.base import ConfigError
from headway.data.predictions.records import Row
from headway.data.predictions.work_folder import PARTS, Output, WorkFolder
from headway.data.sources.streams import open_stream

_CHUNK = 1 << 20


class PartWriter:
    """Writes the rows of a part, with their answers.

    Args:
        path: of the part's file.
        names: of the columns of all rows, for CSV.
        schema: of the rows, for Parquet.
        answers: the columns that are added.
    """

    def __init__(
        self, path: Path, names: Sequence[str], schema: pyarrow.Schema | None, answers: pyarrow.Schema
    ) -> None:
        self._path, self._names, self._schema, self._answers = path, names, schema, answers
        self._tables: list[pyarrow.Table] = []

    def add(self, rows: Sequence[Row], answers: dict[str, Sequence[Any]]) -> None:
        """Write some rows.

        Args:
            rows: as they were read.
            answers: the values of each column that is added.
        """
        if self._path.suffix == ".parquet":
            self._tables.append(self._table(rows, answers))
            return
        answers_of_rows = [
            dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)
        ]
        pairs = zip(rows, answers_of_rows, strict=True)
        with self._path.open("ab") as file:
            if self._path.suffix == ".csv":
                file.write(_csv_lines([*self._names, *answers], (row | answer for row, answer in pairs)))
            else:
                file.writelines(_json_line(row, answer) for row, answer in pairs)

    def close(self) -> None:
        """Write what is left: a part of Parquet is one row group."""
        if self._path.suffix == ".parquet":
            table = pyarrow.concat_tables(self._tables)
            with parquet_writer(self._path, table.schema) as writer:
                writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def _table(self, rows: Sequence[Row], answers: dict[str, Sequence[Any]]) -> pyarrow.Table:
        assert self._schema is not None
        try:
            table = pyarrow.Table.from_pylist(list(rows), schema=self._schema)
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"--output: these rows do not fit into Parquet: {reason}; use .jsonl"
            ) from error
        for name, values in answers.items():
            field = self._answers.field(name)
            table = table.append_column(field, _array(values, field.type))
        return table


def _array(values: Sequence[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    if pyarrow.types.is_fixed_size_list(kind):
        flat = np.asarray(values).ravel()
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, kind.value_type), type=kind)
    return pyarrow.array(values, kind)


def _json_line(row: Row, answer: Row) -> bytes:
    """Both in one object. The row is written by the library that read it, which keeps every number."""
    left = json.dumps(row, ensure_ascii=False, default=str).encode()
    return left[:-1] + b", " + _json(answer)[1:] + b"\n"


def _json(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def _csv_lines(names: Sequence[str], rows: Iterable[Row]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(names))
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return _json(value).decode()
    return json.dumps(value, default=str) if isinstance(value, list | dict) else value


def parquet_writer(target: Any, schema: pyarrow.Schema) -> pyarrow.parquet.ParquetWriter:
    """A writer that looks for repeated values only in columns of text: vectors have none."""
    texts = [
        field.name
        for field in schema
        if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type)
    ]
    return pyarrow.parquet.ParquetWriter(target, schema, use_dictionary=texts)


def part_name(number: int, suffix: str) -> str:
    """The name of a part's file."""
    return f"{PARTS}/part-{number:06}{suffix}"


class Joiner:
    """Puts the parts into one file, in order, and deletes the work folder."""

    def __init__(self, work: WorkFolder, output: Output, names: Sequence[str], parts: int) -> None:
        self._work, self._output, self._names, self._parts = work, output, names, parts

    def __call__(self, _: None) -> None:
        """Write the output: whole, or not at all."""
        places = [self._work.address(part_name(i, self._output.suffix)) for i in range(self._parts)]
        with self._target() as target:
            if self._output.suffix == ".parquet":
                _join_parquet(places, target)
                return
            if self._output.suffix == ".csv":
                target.write(_csv_lines(self._names, [dict(zip(self._names, self._names, strict=True))]))
            for place in places:
                with open_stream(place) as stream:
                    shutil.copyfileobj(stream, target, _CHUNK)

    @contextmanager
    def _target(self) -> Iterator[Any]:
        """A stream to a draft that is then renamed, or to an object, which is there once it is whole."""
        if self._output.is_local:
            with self._work.writing("joined") as draft, draft.open("wb") as stream:
                yield stream
            Path(self._work.address("joined")).replace(self._output.path)
            return
        try:
            with self._output.files.open_output_stream(self._output.path) as stream:
                yield stream
        except BaseException:
            self._output.files.delete_file(self._output.path)
            raise


def _join_parquet(places: Sequence[str], target: Any) -> None:
    writer = None
    for place in places:
        with open_stream(place) as stream:
            table = pyarrow.parquet.ParquetFile(stream).read(use_threads=False)
        writer = writer or parquet_writer(target, table.schema)
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
    if writer is not None:
        writer.close()
