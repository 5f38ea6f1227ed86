"""Cut a source of documents into blocks, each of which can be read without the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import pyarrow.parquet
from pyarrow import fs

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.sources.documents import BBC_NEWS, is_saved_dataset, load_dataset, place_of
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
_DATASET_ROWS = 16_384
_WIDE_ENCODINGS = ("utf-16", "utf16", "utf-32", "utf32", "u16", "u32")

Kind = Literal["texts", "lines", "rows", "parquet", "dataset"]


class File(NamedTuple):
    """A file of a source: its path or URI, its bytes, and when it was changed, in ns since the epoch."""

    address: str
    size: int
    changed: int


class Block(NamedTuple):
    """A piece of a source, in the source's order.

    Attributes:
        kind: how it is read: whole files as texts, lines of JSON, rows of a CSV or JSON file, row groups of a
            Parquet file, or rows of a `datasets.Dataset`.
        files: that it reads; one, except for texts; none for a data set.
        start: of lines, the first byte; of Parquet, the first row group; of a data set, the first row.
        end: the one after the last; None for the end of the file.
        size: about how many bytes it reads.
    """

    kind: Kind
    files: tuple[File, ...]
    start: int = 0
    end: int | None = None
    size: int = 0

    def digest(self, settings: str) -> str:
        """A name for what reading it gives: other files, other times or other settings have another."""
        content = json.dumps([settings, *self])
        return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def plan_blocks(source: SourceConfig, block_bytes: int = BLOCK_BYTES) -> list[Block]:
    """The blocks of a source, in the order of its documents.

    Raises:
        ConfigError: the source does not exist, is empty, or has a type that is not known.
    """
    files = list(source_files(source))
    if files:
        return list(_blocks_of(files, source, block_bytes))
    rows = len(load_dataset(source))
    starts = range(0, rows, _DATASET_ROWS)
    return [Block("dataset", (), start, min(start + _DATASET_ROWS, rows)) for start in starts]


def source_files(source: SourceConfig) -> list[File]:
    """The files of a source, sorted by path; none if it is a name that `datasets` knows, or a saved data set.

    Raises:
        ConfigError: the source does not exist, or holds no file of a known type.
    """
    name = source.source
    place = None if "://" in name or is_glob(name) else place_of(name)
    if place is not None and place.is_dir() and is_saved_dataset(place):
        return []
    if place is None and "://" not in name and not is_glob(name):
        return []
    try:
        return _listed(name, place)
    except ReadError as error:
        raise ConfigError(f"source: {name!r} cannot be read: {str(error).splitlines()[0]}") from error


def _listed(name: str, place: Path | None) -> list[File]:
    address = name if place is None else str(place)
    if is_glob(name):
        files = [_file(*found) for found in glob_files(name)]
        return _of_known_types(files, name)
    filesystem, path = filesystem_of(address)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.File:
        return _of_known_types([_file(address, info)], name)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"source: {name!r} does not exist")
    scheme = address.partition("://")[0] + "://" if "://" in address else ""
    infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    options = split_options(address)[1]
    files = [_file(scheme + info.path + options, info) for info in infos if info.type == fs.FileType.File]
    if place is not None:
        # A link to nothing is not listed, but it is a file that cannot be read, and reading it will say so.
        links = (path for path in place.rglob("*") if path.is_symlink() and not path.exists())
        files += [File(str(path), 0, 0) for path in links]
    texts = [file for file in files if plain_name(file.address).lower().endswith(".txt")]
    if name == BBC_NEWS or texts:
        return _sorted(texts)
    known = [file for file in files if _is_known(file)]
    if not known:
        allowed = ", ".join([".txt", *FILE_TYPES])
        raise ConfigError(f"source: {name!r} holds no .txt file, and none of {allowed}, compressed or not")
    return _sorted(known)


def _file(address: str, info: fs.FileInfo) -> File:
    return File(address, info.size or 0, info.mtime_ns or 0)


def _of_known_types(files: list[File], name: str) -> list[File]:
    if not files:
        raise ConfigError(f"source: {name!r} matches no file")
    for file in files:
        if not _is_known(file):
            allowed = ", ".join([".txt", *FILE_TYPES])
            raise ConfigError(
                f"source: {file.address!r} has an unknown type; allowed: a folder, {allowed}, each also with "
                ".gz, .zst or .bz2"
            )
    return _sorted(files)


def _is_known(file: File) -> bool:
    return plain_name(file.address).lower().endswith((".txt", *FILE_TYPES))


def _sorted(files: list[File]) -> list[File]:
    return sorted(files, key=lambda file: PurePosixPath(file.address))


def _blocks_of(files: list[File], source: SourceConfig, block_bytes: int) -> Iterator[Block]:
    texts: list[File] = []
    for file in files:
        kind = _kind(file, source)
        if kind != "texts":
            yield from _texts_block(texts)
            texts = []
            yield from _blocks_of_file(file, kind, block_bytes)
            continue
        texts.append(file)
        if sum(text.size for text in texts) >= block_bytes or len(texts) >= _DATASET_ROWS:
            yield from _texts_block(texts)
            texts = []
    yield from _texts_block(texts)


def _texts_block(texts: list[File]) -> Iterator[Block]:
    if texts:
        yield Block("texts", tuple(texts), size=sum(text.size for text in texts))


def _kind(file: File, source: SourceConfig) -> Kind:
    name = plain_name(file.address).lower()
    if name.endswith(".txt"):
        return "texts"
    if name.endswith(".parquet"):
        return "parquet"
    # In these, the byte of a line feed may be half of another character.
    is_wide = source.encoding.lower().replace("_", "-").startswith(_WIDE_ENCODINGS)
    return "lines" if name.endswith(".jsonl") and not is_wide else "rows"


def _blocks_of_file(file: File, kind: Kind, block_bytes: int) -> Iterator[Block]:
    if kind == "parquet":
        yield from _parquet_blocks(file, block_bytes)
    elif kind == "lines" and compression_of(file.address) is None:
        for start in range(0, max(file.size, 1), block_bytes):
            end = min(start + block_bytes, file.size)
            yield Block(kind, (file,), start, None if end == file.size else end, end - start)
    else:
        yield Block(kind, (file,), size=file.size)


def _parquet_blocks(file: File, block_bytes: int) -> Iterator[Block]:
    try:
        with open_stream(file.address) as stream:
            metadata = pyarrow.parquet.ParquetFile(stream).metadata
            sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    except ReadError:
        # Reading it will say what is wrong.
        yield Block("parquet", (file,), size=file.size)
        return
    start, size = 0, 0
    for group, group_size in enumerate(sizes):
        size += group_size
        if size >= block_bytes or group == len(sizes) - 1:
            yield Block("parquet", (file,), start, group + 1, size)
            start, size = group + 1, 0
