"""Rows read from ranges of files: each in exactly one, whatever the file looks like."""

from __future__ import annotations

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from headway.config.base import ConfigError
from headway.data.predictions import records
from headway.data.predictions.inputs import Block, InputFile, blocks_of, list_files
from headway.data.predictions.records import Columns, RecordReader, chunks

COLUMNS = Columns("text", frozenset({"answer"}))
ROWS = [{"id": str(i), "text": f'{i}, "{"ü" * (i % 7)}"\r\n\u2028{i}', "note": ""} for i in range(300)]


def read(file: InputFile, start: int = 0, end: int | None = None, names: list[str] | None = None):
    return list(RecordReader(file, Block(0, start, end), COLUMNS, names))


def bad(path) -> list[str]:
    return [str(record.problem) for record in read(list_files(str(path))[0]) if record.problem]


@pytest.mark.parametrize("size", [7, 100, 4096, 1 << 20])
def test_every_line_is_in_one_block(tmp_path, size):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    (file,) = list_files(str(path))
    found = [record for block in blocks_of(0, file, size) for record in read(file, block.start, block.end)]
    assert [record.values for record in found] == ROWS


def test_a_range_that_begins_where_a_chunk_ends_has_the_rows_after_it(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_ROWS", 7)
    with (tmp_path / "rows.csv").open("w", encoding="utf-8-sig", newline="") as target:
        writer = csv.DictWriter(target, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet", row_group_size=50)
    for file in list_files(str(tmp_path)):
        reader = RecordReader(file, Block(0), COLUMNS)
        whole = list(chunks(reader, 0, "text"))
        assert [row for chunk in whole for row in chunk.rows] == ROWS
        ends = [0, *(chunk.end for chunk in whole)]
        for chunk, start, end in zip(whole, ends, ends[1:], strict=False):
            names = reader.names if start else None
            assert [record.values for record in read(file, start, end, names)] == chunk.rows


def test_what_a_chunk_holds_depends_only_on_the_rows_since_its_range_began(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "CHUNK_BYTES", 500)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (file,) = list_files(str(path))
    whole = list(chunks(RecordReader(file, Block(0), COLUMNS), 0, "text"))
    start = whole[2].end
    rest = list(chunks(RecordReader(file, Block(0, start), COLUMNS), start, "text"))
    assert rest == whole[3:]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text"', "not JSON: "),
        (b"[1]", "not a JSON object"),
        (b'{"text": "a\xff"}', "not UTF-8 text (byte 11)"),
        (b'{"text": "\\ud800"}', "not text: it names half of a character"),
        (b'{"body": 1}', "no column 'text'; it has: body"),
        (b'{"text": null}', "column 'text' holds NoneType, not text"),
        (b'{"text": "", "answer": 1}', "column 'answer' is taken; rename it"),
        (b'{"text": "' + b"a" * 200 + b'"}', "longer than 0 MB"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_and_the_next_is_read(tmp_path, monkeypatch, line, problem):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 100)
    monkeypatch.setattr(records, "_TOO_LONG", "longer than 0 MB")
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line + b'\n{"text": "good", "n": 123456789012345678901234567890}\n')
    found = read(list_files(str(path))[0])
    assert str(found[0].problem).startswith(problem)
    assert found[1].problem is None and found[1].values["n"] == 123456789012345678901234567890


def test_rows_of_csv_that_are_not_text_or_too_long_are_bad(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b'id,text\n1,a\n2\n3,b,c\n\n4,\xff\n5,"x\ny"\n')
    assert bad(path) == [
        "column 'text' holds NoneType, not text",
        "more fields than the first line has",
        "not UTF-8 text (byte 2 of its line)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("open.csv", b'text\n"' + b"a\n" * 100, r"open.csv: not CSV: field larger than field limit"),
        ("line.csv", b"text\n" + b"a" * 200, r"line.csv: not CSV: a line is longer"),
        ("zero.csv", b"t\0e\0x\0t\0\n\0", r"zero.csv: not CSV: it holds zero bytes"),
        ("none.parquet", b"PAR1 and no more", r"none.parquet: cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_refused(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(records, "MAX_ROW_BYTES", 100)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read(list_files(str(tmp_path / name))[0])
    assert "\n" not in str(error.value)


def test_parquet_keeps_row_numbers_and_names_of_columns(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"text": ["a", None, "c"], "n": pyarrow.array([1, 2, 3], pyarrow.int8())})
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    assert bad(path) == ["column 'text' holds NoneType, not text"]
    assert read(list_files(str(path))[0], 2, 3)[0].values == {"text": "c", "n": 3}


def test_files_of_a_folder_a_pattern_and_what_is_refused(tmp_path):
    for name in ("b.jsonl", "a.csv.gz", "sub/c.parquet", "readme.md", "_SUCCESS", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(source: str) -> list[str]:
        return [file.address.removeprefix(f"{tmp_path}/") for file in list_files(source)]

    assert names(str(tmp_path)) == ["a.csv.gz", "b.jsonl", "sub/c.parquet"]
    assert names(f"{tmp_path}/*.jsonl") == [".hidden.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match=r"readme.md' has an unknown type; allowed: "):
        list_files(str(tmp_path / "readme.md"))
    with pytest.raises(ConfigError, match="does not exist"):
        list_files(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="holds no file of a known type"):
        list_files(f"{tmp_path}/*.nothing")
