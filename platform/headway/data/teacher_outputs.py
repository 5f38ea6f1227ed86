"""What a teacher says to each row of a task: computed once, mapped from disk, and joined with batches.

A store is a folder of three files. For two rows, "a" and "b c", of which the teacher's outputs have shapes
(1, 3) and (2, 3), it holds

    values.npy    float32, shape (3, 3): the outputs of all rows, end to end
    starts.npy    [0, 1, 3]   int64: where those of each row begin, and the end
    keys.json     {"a": 0, "b c": 1}, with digests in place of the texts
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headway.data.batch import Batch
from headway.data.batches import DealtBatches, WrappedBatches


def write_teacher_outputs(folder: Path, keys: Sequence[str], rows: Sequence[np.ndarray]) -> None:
    """Write a teacher's outputs into an existing folder.

    Args:
        folder: where to write.
        keys: what names each row, wherever it stands among others.
        rows: the teacher's outputs for each of them, float32, shape (units, …).
    """
    starts = np.cumsum([0, *(len(row) for row in rows)])
    np.save(folder / "values.npy", np.concatenate(list(rows)).astype(np.float32))
    np.save(folder / "starts.npy", starts.astype(np.int64))
    (folder / "keys.json").write_text(json.dumps({_digest(key): row for row, key in enumerate(keys)}))


class TaughtBatches(WrappedBatches):
    """The batches of another source, with what a teacher says to them in `taught`.

    Those of `in_order` are without it, since models are judged by their task.

    Args:
        batches: whose rows the teacher has seen.
        folder: with the teacher's outputs.
        keys: of the source's rows, in order.
    """

    def __init__(self, batches: DealtBatches, folder: Path, keys: Sequence[str]) -> None:
        super().__init__(batches)
        self._sequences_a_row = batches.sequences_a_row
        self._folder = folder
        known = json.loads((folder / "keys.json").read_text())
        self._indices = np.asarray([known[_digest(key)] for key in keys], dtype=np.int64)
        self._starts = np.load(folder / "starts.npy")
        self._values = np.load(folder / "values.npy", mmap_mode="r")

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # The values are mapped again, not copied, in each process that makes batches.
        return _reopened, (self._batches, self._folder, self._indices)

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        batches = super().micro_batches(step, rank, world_size, parts)
        return [replace(batch, taught=self._outputs(batch)) for batch in batches]

    def _outputs(self, batch: Batch) -> torch.Tensor:
        # The sequences of a row follow one another, and the row's outputs are those of all of them.
        indices = self._indices[batch.row_ids.numpy()[:: self._sequences_a_row]]
        parts = [self._values[self._starts[i] : self._starts[i + 1]] for i in indices]
        return torch.from_numpy(np.concatenate(parts))


def _reopened(batches: DealtBatches, folder: Path, indices: np.ndarray) -> TaughtBatches:
    taught = TaughtBatches(batches, folder, [])
    taught._indices = indices
    return taught


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
