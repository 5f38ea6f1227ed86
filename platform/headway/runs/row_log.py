"""Logs the rows that every step trains on: proof that each row is seen exactly once an epoch."""

from __future__ import annotations

import json
from pathlib import Path

from headway.data.batches import Batch, BatchSource, WrappedBatches
from headway.engine.parallel.worker import Worker


class RowLog(WrappedBatches):
    """The batches of another source; their row ids are appended to `folder/<rank>.jsonl`.

    A step that a killed run has to repeat is logged twice, with the same rows.
    """

    def __init__(self, batches: BatchSource, folder: Path, worker: Worker) -> None:
        super().__init__(batches)
        folder.mkdir(exist_ok=True)
        self._stream = (folder / f"{worker.rank}.jsonl").open("a", encoding="utf-8")

    def micro_batches(self, step: int, rank: int, world_size: int, parts: int) -> list[Batch]:
        """See `BatchSource`."""
        batches = super().micro_batches(step, rank, world_size, parts)
        rows = [row for batch in batches for row in batch.row_ids.tolist()]
        self._stream.write(json.dumps({"step": step, "world_size": world_size, "rows": rows}) + "\n")
        self._stream.flush()
        return batches
