"""Folders and files that are seen whole or not at all, and copies that share what is the same."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that takes its final name when the block ends well, and is removed when it fails.

    A folder of that name made meanwhile by another process is kept, and the draft thrown away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        draft.chmod(0o755)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file under a passing name and rename it; text in UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    draft.replace(path)


def link_or_copy(source: str, target: str) -> None:
    """A hard link costs nothing; across file systems there is none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
