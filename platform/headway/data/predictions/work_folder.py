"""The folder beside an output in which parts are kept until the output is whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

from headway.config.base import ConfigError
from headway.data.atomic import flush_to_disk
from headway.data.sources.streams import filesystem_of, split_options

OUTPUT_TYPES = (".csv", ".jsonl", ".parquet")
PARTS = "parts"
"""Where in a work folder the finished parts are."""


class Output:
    """What is written: a file, or a folder of Parquet files if the address ends with a slash.

    Args:
        address: a path, or a URI that pyarrow knows.

    Raises:
        ConfigError: it has an unknown type.
    """

    def __init__(self, address: str) -> None:
        plain, query = split_options(address)
        self.is_folder = plain.endswith("/")
        self.suffix = ".parquet" if self.is_folder else Path(plain).suffix.lower()
        if self.suffix not in OUTPUT_TYPES:
            raise ConfigError(
                f"--output: {address!r} has an unknown type; allowed: {', '.join(OUTPUT_TYPES)}, or a folder "
                "of Parquet files, with / at its end"
            )
        plain = plain.rstrip("/")
        if "://" not in plain:
            plain = str(Path(plain).expanduser().absolute())
        self.address = plain + query
        self.files, self.path = filesystem_of(self.address)
        self.is_local = isinstance(self.files, fs.LocalFileSystem)

    def check(self) -> None:
        """Refuse what cannot be written, before anything is computed.

        Raises:
            ConfigError: the folder it is to lie in does not exist, or it is there already.
        """
        parent = str(Path(self.path).parent)
        if self.is_local and not Path(parent).is_dir():
            raise ConfigError(f"--output: the folder {parent!r} does not exist")
        if self.files.get_file_info(self.path).type != fs.FileType.NotFound:
            raise ConfigError(f"--output: {self.address!r} exists already; nothing is overwritten")


class WorkFolder:
    """`.NAME.parts` beside the output `NAME`, on the same filesystem, reached by all workers.

    Args:
        output: what will be written.
    """

    def __init__(self, output: Output) -> None:
        plain, self._query = split_options(output.address)
        parent, _, name = plain.rpartition("/")
        self._base = f"{parent}/.{name}.parts"
        self.files, self._root = filesystem_of(self._base + self._query)
        self.is_local = output.is_local

    def address(self, name: str) -> str:
        """The path or URI of something in the folder."""
        return f"{self._base}/{name}{self._query}"

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder in this one."""
        found = self.files.get_file_info(fs.FileSelector(self._path(folder), allow_not_found=True))
        return {info.base_name for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        if self.files.get_file_info(self._path(name)).type == fs.FileType.NotFound:
            return None
        with self.files.open_input_stream(self._path(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file that others see whole or not at all."""
        with self.writing(name) as draft:
            draft.write_bytes(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local file to write, which gets its name in the folder, whole, if the block succeeds."""
        target = self._path(name)
        if self.is_local:
            self.files.create_dir(target.rpartition("/")[0], recursive=True)
        # A draft beside its target can be renamed; an object store shows nothing but whole objects.
        place = self._root if self.is_local else None
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=place) as folder:
            draft = Path(folder) / target.rpartition("/")[2]
            yield draft
            if self.is_local:
                flush_to_disk(draft)
                draft.replace(target)
            else:
                fs.copy_files(str(draft), target, fs.LocalFileSystem(), self.files)

    def publish(self, folder: str, output: Output) -> None:
        """Move the files of a folder in this one to the output, and delete the rest."""
        if self.is_local:
            Path(self._path(folder)).rename(output.path)
        else:
            for name in sorted(self.names(folder)):
                self.files.move(self._path(f"{folder}/{name}"), f"{output.path}/{name}")
        self.remove()

    def remove(self, folder: str = "") -> None:
        """Delete the folder, or one in it, with its content."""
        path = self._path(folder).rstrip("/")
        if self.files.get_file_info(path).type != fs.FileType.NotFound:
            self.files.delete_dir(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"
