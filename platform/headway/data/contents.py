"""What files and folders hold, in a digest, without reading again what is still the same."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import xxhash

from headway.data.atomic import write_atomically

_CHUNK = 8 << 20


class Contents:
    """Digests of content: names below a folder and bytes, but no times and nothing of where it lies.

    A place is read again only if the name, the size or the time of a file in it has changed since. For that,
    `memory` holds, for example, `{"/data/texts": ["<names, sizes and times>", "<content>"]}`.

    Args:
        memory: a file; one that cannot be written to, or read, only costs time.
        ignored: names of files that do not count.
    """

    def __init__(self, memory: Path, ignored: Sequence[str] = ()) -> None:
        self._memory = memory
        self._ignored = ignored
        self._known: dict[str, list[str]] = {}
        self._is_remembered = True
        with contextlib.suppress(OSError, ValueError):
            self._known = json.loads(memory.read_text(encoding="utf-8"))

    def of(self, place: Path) -> str:
        """The digest of a file, or of all files in a folder and below."""
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        files = [file for file in files if file.name not in self._ignored]
        seen, key = _look(place, files), str(place.resolve())
        known = self._known.get(key)
        if known is None or known[0] != seen:
            known = self._known[key] = [seen, _read(place, files)]
            self._is_remembered = False
        return known[1]

    def remember(self) -> None:
        """Write what has been read to `memory`."""
        if self._is_remembered:
            return
        with contextlib.suppress(OSError):
            write_atomically(self._memory, json.dumps(self._known, indent=0))
            self._is_remembered = True


def _look(place: Path, files: Sequence[Path]) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        facts = file.stat()
        digest.update(os.fsencode(f"{file.relative_to(place)} {facts.st_size} {facts.st_mtime_ns}\0"))
    return digest.hexdigest()


def _read(place: Path, files: Sequence[Path]) -> str:
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(os.fsencode(f"{file.relative_to(place)} {file.stat().st_size}\0"))
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
