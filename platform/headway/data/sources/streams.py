"""Read files of any size piece by piece: local or on object stores, plain or compressed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow
from pyarrow import fs

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""What a compressed file's name ends with → what pyarrow calls the compression."""
_CHUNK = 1 << 20


def filesystem_of(address: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or a URI (`s3://`, `gs://`, …), and the path in it."""
    if "://" in address:
        return fs.FileSystem.from_uri(address)
    return fs.LocalFileSystem(), address


def split_options(address: str) -> tuple[str, str]:
    """An address, and the options of a URI from the question mark on: `s3://bucket/texts?region=us-east-1`."""
    path, mark, options = address.partition("?") if "://" in address else (address, "", "")
    return path, mark + options


def compression_of(address: str) -> str | None:
    """What pyarrow calls the compression that a file's name ends with; None for a plain file."""
    name = split_options(address)[0].lower()
    return next((known for suffix, known in COMPRESSIONS.items() if name.endswith(suffix)), None)


def plain_name(address: str) -> str:
    """A file's name without the ending of its compression, and without the options of a URI."""
    name = split_options(address)[0]
    return name[: name.rindex(".")] if compression_of(name) else name


def open_stream(address: str) -> Any:
    """A stream of a file's bytes, decompressed; one of a plain file can be sought in.

    Raises:
        OSError: the file cannot be read, here or later.
    """
    files, path = filesystem_of(address)
    compression = compression_of(address)
    if compression is None:
        return files.open_input_file(path)
    return files.open_input_stream(path, compression=compression)


def read_limited(address: str, limit: int) -> bytes | None:
    """All bytes of a file; None if there are more than `limit`.

    Raises:
        OSError: the file cannot be read.
    """
    with open_stream(address) as stream:
        parts: list[bytes] = []
        size = 0
        while chunk := stream.read(_CHUNK):
            size += len(chunk)
            if size > limit:
                return None
            parts.append(chunk)
    return b"".join(parts)


def lines(stream: Any, start: int, end: int | None, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines that begin in a range of bytes, each with the offset at which it begins.

    Every line of a file is in exactly one of the ranges that divide it. Of a line, no more than `limit` bytes
    are held.

    Args:
        stream: from `open_stream`, at its beginning; not compressed if `start` is not 0.
        start: the first byte of the range.
        end: the byte after its last; None for the end of the file.
        limit: the length from which on a line is None.

    Yields:
        Offsets, and lines without the line feed.
    """
    if start:
        stream.seek(start - 1)
    offset = max(start - 1, 0)
    is_before = start > 0  # what comes before the first line feed belongs to the range before
    held: list[bytes] = []
    size = 0
    while chunk := stream.read(_CHUNK):
        pieces = chunk.split(b"\n")
        for piece in pieces[:-1]:
            size += len(piece)
            if size <= limit:
                held.append(piece)
            if not is_before:
                yield offset, b"".join(held) if size <= limit else None
            offset += size + 1
            held, size, is_before = [], 0, False
            if end is not None and offset >= end:
                return
        size += len(pieces[-1])
        held = [*held, pieces[-1]] if size <= limit and not is_before else []
    if size and not is_before:
        yield offset, b"".join(held) if size <= limit else None


ReadError = (OSError, pyarrow.ArrowException)
"""What reading a damaged or missing file raises."""
