"""Files whose paths match a pattern, on local disks and on object stores."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pyarrow import fs

from headway.data.sources.streams import filesystem_of, split_options

_SPECIAL = re.compile(r"[*?\[]")


def is_glob(source: str) -> bool:
    """Whether a source is a pattern, such as `texts/*.jsonl` or `s3://bucket/**/part-?.parquet`, and no path.

    A file or folder whose name has such a character is itself. In a URI, options follow a question mark.
    """
    special = _SPECIAL.search(split_options(source)[0])
    return bool(special) and ("://" in source or not Path(source).expanduser().exists())


def glob_files(pattern: str) -> Iterator[tuple[str, fs.FileInfo]]:
    """Addresses and facts of the files that match; `**` stands for any folders, `*` stops at a slash."""
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    pattern, options = split_options(pattern)
    if not scheme:
        pattern = str(Path(pattern).expanduser())
    special = _SPECIAL.search(pattern)
    assert special is not None
    base = pattern[: pattern.rfind("/", 0, special.start()) + 1] or "."
    filesystem, root = filesystem_of(base + options)
    expression = re.compile(_expression(pattern.removeprefix(scheme)))
    selector = fs.FileSelector(root.rstrip("/") or "/", recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        path = info.path.removeprefix("./") if base == "." else info.path
        if info.type == fs.FileType.File and expression.fullmatch(path):
            yield scheme + path + options, info


def _expression(pattern: str) -> str:
    """The pattern as a regular expression."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part, part if part.startswith("[") else re.escape(part)) for part in parts)
