"""Write files and folders so that others see them whole or not at all, and copy files by hard links."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that gets its final name if the block succeeds, and is removed if it fails.

    If another process has made the folder meanwhile, that one is kept and the draft is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        flush_to_disk(draft)
        try:
            draft.rename(folder)
            _flush(folder.parent)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name and rename it; text is written in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    _flush(draft)  # otherwise a machine that fails may leave the new name without the content
    draft.replace(path)
    _flush(path.parent)


def once(path: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, in JSON's types; it is kept in a file, and not made again if that is there."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    made = make()
    write_atomically(path, json.dumps(made))
    return made


def flush_to_disk(path: Path) -> None:
    """Return once a file, or all in a folder, outlasts a machine that fails."""
    for below in sorted(path.rglob("*")) if path.is_dir() else ():
        if not below.is_symlink():
            _flush(below)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: str, target: str) -> None:
    """Make a hard link, which takes no space, or a copy on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
