"""Files read piece by piece: every line in exactly one range, whatever its length."""

from __future__ import annotations

import bz2
import gzip

import pyarrow
import pytest

from headway.data.sources.streams import lines, open_stream, plain_name, read_limited

CONTENT = b"first\n\nthird line\nthe fourth\n" + b"x" * 3_000_000 + b"\nlast without an end"


@pytest.mark.parametrize("size", [1, 3, 7, 10, 1000, 1_500_000, 10_000_000])
def test_each_line_is_in_exactly_one_range(size, tmp_path):
    path = tmp_path / "a.txt"
    content = CONTENT[:29] + CONTENT[-30:] if size < 1000 else CONTENT
    path.write_bytes(content)
    found = []
    for start in range(0, len(content), size):
        end = start + size if start + size < len(content) else None
        with open_stream(str(path)) as stream:
            found += list(lines(stream, start, end, limit=10_000_000))
    assert [line for _, line in found] == content.split(b"\n")
    assert all(content[offset:].startswith(line) for offset, line in found if line is not None)


def test_a_line_that_is_too_long_is_told_without_holding_it_and_the_next_one_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(CONTENT)
    with open_stream(str(path)) as stream:
        found = [line for _, line in lines(stream, 0, None, limit=100)]
    assert found == [b"first", b"", b"third line", b"the fourth", None, b"last without an end"]


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda content: pyarrow.compress(content, "zstd", asbytes=True)),
        ("", bytes),
    ],
)
def test_compressed_files_are_read_as_what_they_hold(ending, compress, tmp_path):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(compress(CONTENT))
    with open_stream(str(path)) as stream:
        assert b"\n".join(line or b"" for _, line in lines(stream, 0, None, 10_000_000)) == CONTENT
    assert read_limited(str(path), 10_000_000) == CONTENT
    assert read_limited(str(path), 1000) is None
    assert plain_name(str(path)) == str(tmp_path / "a.jsonl")
