"""The states in a folder, by name: which are complete, and which of them may be deleted.

A state is a folder `step-<steps>-<attempt>`, and complete once its manifest is there.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import xxhash

from headway.engine.checkpoint.storage import Folder

_PREFIX = "step-"
_MANIFEST = "manifest.json"


class SavedStates:
    """The states in a folder.

    Attributes:
        folder: where they are.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @staticmethod
    def name_of(step: int, attempt: str) -> str:
        """The name of the state after so many steps."""
        return f"{_PREFIX}{step:09d}-{attempt}"

    def complete(self) -> list[str]:
        """Names of the complete states, by their steps."""
        return [name for name in self._all() if self.folder.exists(f"{name}/{_MANIFEST}")]

    def manifest(self, name: str) -> dict[str, Any]:
        """What is known of a complete state.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not what was written.
        """
        manifest = json.loads(self.folder.read(f"{name}/{_MANIFEST}"))
        body: dict[str, Any] = manifest["body"]
        if _checksum(body) != manifest["checksum"]:
            raise ValueError(f"{_MANIFEST} is not what was written")
        return body

    def complete_with(self, name: str, body: dict[str, Any]) -> None:
        """Write a state's manifest: all its other files are on disk."""
        sealed = {"checksum": _checksum(body), "body": body}
        self.folder.write(f"{name}/{_MANIFEST}", json.dumps(sealed).encode())

    def remove(self, name: str) -> None:
        """Delete a state; its manifest first, so that what is left of it is not taken for one."""
        self.folder.remove(f"{name}/{_MANIFEST}")
        self.folder.remove(name)

    def remove_drafts(self) -> None:
        """Delete all that is not complete."""
        for name in set(self._all()) - set(self.complete()):
            self.folder.remove(name)

    def prune(self, keep: int, keep_best: int, sound: Collection[str], damaged: Collection[str]) -> None:
        """Delete damaged states, and all but the newest sound ones and the best.

        With `keep` 1, if 4 was damaged, so that a run went back to 2 and now has saved 3, only 3 is kept.

        Args:
            keep: how many of the newest are kept.
            keep_best: how many of those with the lowest metric are kept besides.
            sound: those that were checked, or written, since this run started. Only they count as newest.
            damaged: those that were found not to hold what was written.
        """
        names = self.complete()
        newest = [name for name in names if name in sound and self._seems_whole(name)][-keep:]
        if not newest:
            return
        kept = {*newest, *self._best(keep_best, [name for name in names if name not in damaged])}
        for name in names:
            # What is newer could not be read when this run started. It may be sound all the same.
            if name not in kept and (name in sound or name in damaged or name < newest[0]):
                self.remove(name)

    def _best(self, number: int, names: list[str]) -> list[str]:
        whole = [name for name in names if number and self._seems_whole(name)]
        metrics = {name: self.manifest(name)["metric"] for name in whole}
        measured = [name for name, metric in metrics.items() if metric is not None]
        return sorted(measured, key=lambda name: metrics[name])[:number]

    def _seems_whole(self, name: str) -> bool:
        """Whether a state's manifest can be read and its files are as long as it says; none is read."""
        try:
            files = self.manifest(name)["files"]
        except (OSError, ValueError, KeyError):
            return False
        sizes = self.folder.sizes(name)
        return all(sizes.get(file) == size for file, (size, _) in files.items())

    def _all(self) -> list[str]:
        return [name for name in self.folder.names() if name.startswith(_PREFIX)]


def step_of(name: str) -> int:
    """Steps that a state has behind it."""
    return int(name.removeprefix(_PREFIX).partition("-")[0])


def saved_steps(folder: Folder) -> list[int]:
    """Steps of all complete states in a folder, ascending."""
    return [step_of(name) for name in SavedStates(folder).complete()]


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body).encode())
