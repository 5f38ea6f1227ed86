"""Copy files that cannot be read from their middle, so that parts of them can be read by any worker."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from headway.config.base import ConfigError
from headway.config.sources import SourceConfig
from headway.data.predictions.inputs import InputFile, reading
from headway.data.predictions.work_folder import WorkFolder
from headway.data.sources.files import file_rows
from headway.data.sources.streams import open_stream, plain_name, split_options

_CHUNK = 1 << 20
_MAX_LIST_BYTES = 1 << 30


class PlainCopier:
    """Copies files into the work folder: decompressed, and lists in JSON as a line for each item."""

    def __init__(self, work: WorkFolder) -> None:
        self._work = work

    def __call__(self, numbered: tuple[int, InputFile]) -> InputFile:
        """Copy a file.

        Args:
            numbered: the file's index, and the file.

        Returns:
            The copy.

        Raises:
            ConfigError: it cannot be read to its end.
        """
        number, file = numbered
        name = split_options(file.address)[0].lower()
        suffix = ".csv" if file.kind == "csv" else ".jsonl"
        copy = f"plain/{number:06}{suffix}"
        with self._work.writing(copy) as draft:
            if plain_name(name).endswith(".json"):
                _write_list(file, draft)
            else:
                with reading(file.address), open_stream(file.address) as stream, draft.open("wb") as target:
                    shutil.copyfileobj(stream, target, _CHUNK)
            size = draft.stat().st_size
        return InputFile(self._work.address(copy), size, 0)


def _write_list(file: InputFile, draft: Path) -> None:
    with tempfile.TemporaryDirectory(dir=draft.parent) as folder:
        whole = Path(folder) / "whole.json"
        with reading(file.address), open_stream(file.address) as stream, whole.open("wb") as target:
            shutil.copyfileobj(stream, target, _CHUNK)
        if whole.stat().st_size > _MAX_LIST_BYTES:
            raise ConfigError(
                f"{file.address}: a list in JSON is read whole, so at most {_MAX_LIST_BYTES >> 30} GB of it; "
                "use .jsonl"
            )
        try:
            rows = file_rows(whole, SourceConfig(source=str(whole)))
            with draft.open("w", encoding="utf-8") as target:
                target.writelines(json.dumps(row) + "\n" for row in rows)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(whole), file.address)) from error
