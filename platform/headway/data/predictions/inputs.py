"""The files of rows to predict, cut into blocks that can be read without each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow.parquet
from pyarrow import fs

from headway.config.base import ConfigError
from headway.data.sources.files import FILE_TYPES
from headway.data.sources.globs import glob_files, is_glob
from headway.data.sources.streams import (
    ReadError,
    compression_of,
    filesystem_of,
    open_stream,
    plain_name,
    split_options,
)

BLOCK_BYTES = 32 << 20

Kind = Literal["lines", "csv", "parquet"]


class InputFile(NamedTuple):
    """A file of rows: its path or URI, its bytes, and when it was changed, in ns since the epoch."""

    address: str
    size: int
    changed: int

    @property
    def kind(self) -> Kind:
        """How its rows are read, once it is plain."""
        name = split_options(self.address)[0].lower()
        return "parquet" if name.endswith(".parquet") else "csv" if ".csv" in _suffixes(name) else "lines"

    @property
    def is_plain(self) -> bool:
        """Whether it can be read from its middle. A compressed file cannot, nor can a list in JSON."""
        name = split_options(self.address)[0].lower()
        return compression_of(name) is None and not name.endswith(".json")


class Block(NamedTuple):
    """A piece of a file.

    Attributes:
        file: index of the file.
        start: the first byte of lines, of which those that begin in the range count; or the first row.
        end: the byte or row after the last; None for the end of the file.
    """

    file: int
    start: int = 0
    end: int | None = None


def list_files(source: str) -> list[InputFile]:
    """The files that a path, a pattern or a URI stands for, in the order of their names.

    Of a folder, files of known types count whose names begin with neither a dot nor an underscore.

    Raises:
        ConfigError: there is no such file, or it has an unknown type.
    """
    try:
        files = sorted(_found(source), key=lambda file: PurePosixPath(file.address))
    except ReadError as error:
        raise ConfigError(f"--input: {source!r} cannot be read: {str(error).splitlines()[0]}") from error
    for file in files:
        if not _is_known(file.address):
            raise ConfigError(
                f"--input: {file.address!r} has an unknown type; allowed: {', '.join(FILE_TYPES)}, all but "
                ".parquet also with .gz, .zst or .bz2, and folders of them"
            )
    if not files:
        raise ConfigError(f"--input: {source!r} holds no file of a known type: {', '.join(FILE_TYPES)}")
    return files


def _found(source: str) -> Iterator[InputFile]:
    plain, query = split_options(source)
    if not query and is_glob(source):
        yield from (_file(address, info) for address, info in glob_files(source))
        return
    place = source if "://" in source else str(Path(source).expanduser())
    files, path = filesystem_of(place)
    info = files.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"--input: {source!r} does not exist")
    if info.type == fs.FileType.File:
        yield _file(place, info)
        return
    scheme = plain.partition("://")[0] + "://" if "://" in plain else ""
    for below in files.get_file_info(fs.FileSelector(path, recursive=True)):
        hidden = any(part.startswith((".", "_")) for part in _parts_below(below.path, path))
        if below.type == fs.FileType.File and not hidden and _is_known(below.path):
            yield _file(scheme + below.path + query, below)


def _parts_below(path: str, root: str) -> tuple[str, ...]:
    return PurePosixPath(path).relative_to(PurePosixPath(root)).parts


def _file(address: str, info: fs.FileInfo) -> InputFile:
    return InputFile(address, info.size or 0, info.mtime_ns or 0)


def _suffixes(name: str) -> list[str]:
    return PurePosixPath(plain_name(name)).suffixes[-1:]


def _is_known(address: str) -> bool:
    name = split_options(address)[0].lower()
    return name.endswith(FILE_TYPES) or (
        plain_name(name).endswith(FILE_TYPES) and not plain_name(name).endswith(".parquet")
    )


def blocks_of(number: int, file: InputFile, block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a plain file, in order.

    Only a reader that has seen all before knows where a row of CSV begins, so its file is one block.

    Raises:
        ConfigError: a large file is not Parquet.
    """
    if file.kind == "lines":
        for start in range(0, max(file.size, 1), block_bytes):
            yield Block(number, start, start + block_bytes if start + block_bytes < file.size else None)
    elif file.kind == "parquet" and file.size > 2 * block_bytes:
        yield from _parquet_blocks(number, file, block_bytes)
    else:
        yield Block(number)


def _parquet_blocks(number: int, file: InputFile, block_bytes: int) -> Iterator[Block]:
    with reading(file.address), open_stream(file.address) as stream:
        metadata = pyarrow.parquet.read_metadata(stream)
    start = end = size = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        end, size = end + group.num_rows, size + group.total_byte_size
        if size >= block_bytes or index == metadata.num_row_groups - 1:
            yield Block(number, start, end)
            start, size = end, 0


@contextmanager
def reading(address: str) -> Iterator[None]:
    """Within the block, what cannot be read is a `ConfigError` of one line that names the file."""
    try:
        yield
    except ReadError as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{address}: cannot be read: {str(reason).splitlines()[0]}") from error
