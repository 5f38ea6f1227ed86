"""Read and write folders of files on local disks and object stores, with checksums."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import xxhash
from pyarrow import fs
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata
from torch.distributed.checkpoint.filesystem import FileSystemBase
from torch.distributed.checkpoint.metadata import StorageMeta

from headway.data.atomic import flush_to_disk
from headway.engine.checkpoint.unpickling import read_metadata

_CHUNK = 8 << 20
_BUFFER = 1 << 20


class Folder:
    """A folder at a local path or at a URI that pyarrow knows: `s3://`, `gs://`, `hdfs://`, `file://`.

    Ray's `storage_path` takes the same addresses.

    Attributes:
        address: as it was given, but a local path is made absolute.
        is_local: whether it is on a disk, or on storage that is mounted like one.
    """

    def __init__(self, address: str | Path) -> None:
        text = str(address)
        self.address = text if "://" in text else str(Path(text).expanduser().resolve())
        self._files, self._root = fs.FileSystem.from_uri(self.address)
        self.is_local = isinstance(self._files, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The path of `name` in the filesystem."""
        return f"{self._root}/{name}"

    def create(self, name: str = "") -> None:
        """Make the folder, or a folder in it, if it does not exist."""
        self._files.create_dir(self.path(name), recursive=True)

    def names(self) -> list[str]:
        """Names of what is in the folder; none if there is no folder."""
        selector = fs.FileSelector(self._root, allow_not_found=True)
        return sorted(info.base_name for info in self._files.get_file_info(selector))

    def exists(self, name: str) -> bool:
        """Whether there is a file or a folder of that name."""
        return self._files.get_file_info(self.path(name)).type != fs.FileType.NotFound

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of each file in a folder in this one, in one request; empty if there is none."""
        selector = fs.FileSelector(self.path(name), allow_not_found=True)
        return {info.base_name: info.size for info in self._files.get_file_info(selector)}

    def read(self, name: str) -> bytes:
        """The content of a small file."""
        with self._files.open_input_stream(self.path(name)) as stream:
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a small file that others see whole or not at all."""
        # An object store only shows complete objects; on a local disk, renaming a file does the same.
        # The draft has a name of its own, since another process may write the same file.
        draft = f"{name}.{uuid.uuid4().hex[:8]}.draft" if self.is_local else name
        with self.open(draft, "wb") as stream:
            stream.write(content)
        if self.is_local:
            self._files.move(self.path(draft), self.path(name))

    def write_new(self, name: str, content: bytes) -> bool:
        """Write a small file unless there is one of that name; whether it was written. For local disks."""
        try:
            descriptor = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        return True

    def move(self, name: str, new_name: str) -> None:
        """Rename a file."""
        self._files.move(self.path(name), self.path(new_name))

    def remove(self, name: str) -> None:
        """Delete a file, or a folder with its content; nothing happens if it does not exist."""
        kind = self._files.get_file_info(self.path(name)).type
        if kind == fs.FileType.Directory:
            self._files.delete_dir(self.path(name))
        elif kind != fs.FileType.NotFound:
            self._files.delete_file(self.path(name))

    @contextmanager
    def open(self, name: str, mode: str) -> Iterator[Any]:
        """A stream to read ("rb", seekable) or to write ("wb", which is on disk once the block ends)."""
        path = self.path(name)
        if mode == "rb":
            with self._files.open_input_file(path) as stream:
                yield stream
            return
        with self._files.open_output_stream(path) as stream:
            yield stream
        if self.is_local:
            flush_to_disk(Path(path))

    def checksum(self, name: str) -> tuple[int, str]:
        """The size of a file in bytes, and its checksum as `CheckedWriter` computes it."""
        digest, size = xxhash.xxh3_128(), 0
        with self._files.open_input_stream(self.path(name)) as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()


class _SummedStream(io.RawIOBase):
    """Passes on what is written, and computes its checksum."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = xxhash.xxh3_128()
        self._size = 0

    def write(self, content: Any) -> int:
        """See `io.RawIOBase`."""
        self._digest.update(content)
        self._stream.write(content)
        length = memoryview(content).nbytes
        self._size += length
        return length

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._size

    def total(self) -> tuple[int, str]:
        """How many bytes were written, and their checksum."""
        return self._size, self._digest.hexdigest()


class _CheckpointFiles(FileSystemBase):
    """A folder as a filesystem for torch.distributed.checkpoint; paths are names in the folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.checksums: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        name = str(path)
        with self.folder.open(name, mode) as stream:
            if mode == "rb":
                yield cast(io.IOBase, stream)
                return
            summed = _SummedStream(stream)
            # Even a small state is written by tens of thousands of writes of a few bytes.
            with io.BufferedWriter(summed, _BUFFER) as buffered:
                yield buffered
            self.checksums[name] = summed.total()

    def concat_path(self, path: str | os.PathLike, suffix: str) -> str:
        return f"{path}/{suffix}"

    def init_path(self, path: str | os.PathLike) -> str:
        return str(path)

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        self.folder.move(str(path), str(new_path))
        self.checksums[str(new_path)] = self.checksums.pop(str(path))

    def mkdir(self, path: str | os.PathLike) -> None:
        self.folder.create(str(path))

    def exists(self, path: str | os.PathLike) -> bool:
        return self.folder.exists(str(path))

    def rm_file(self, path: str | os.PathLike) -> None:
        self.folder.remove(str(path))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return True


class CheckedWriter(FileSystemWriter):
    """Writes a distributed checkpoint into `folder/name`.

    Attributes:
        checksums: name in the folder → size in bytes and xxh3-128 of each file that this process wrote.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        # Files are flushed to disk when they are closed; torch would sync all disks instead.
        super().__init__(name, sync_files=False)
        files = _CheckpointFiles(folder)
        self.fs: Any = files
        self.path: Any = name
        self.checksums = files.checksums


class CheckedReader(FileSystemReader):
    """Reads a distributed checkpoint from `folder/name`, and runs nothing that it may hold."""

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(name)
        self.fs: Any = _CheckpointFiles(folder)
        self.path: Any = name

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See `FileSystemReader`.

        Raises:
            ValueError: it is not what torch writes.
        """
        with self.fs.create_stream(f"{self.path}/.metadata", "rb") as stream:
            metadata = read_metadata(stream)
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata
