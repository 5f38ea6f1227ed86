"""Predict every row of a split with all workers, and measure the mean loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.engine.hardware.device import compute_dtype, precision_context
from headway.engine.model.cross_entropy import Term
from headway.engine.parallel.worker import Worker
from headway.engine.training.evaluation import batches_of_worker
from headway.engine.training.objectives import TaskObjective


class Predictions(NamedTuple):
    """A model's predictions.

    Attributes:
        rows: float32 outputs for each row, in order; their shape depends on the objective.
        loss: the mean over all predictions.
    """

    rows: list[np.ndarray]
    loss: float


def predict(
    objective: TaskObjective, batches: BatchSource, worker: Worker, *, batch_size: int, precision: str
) -> Predictions:
    """Run a model over every row once, each worker over its part; all workers get all predictions."""
    mine: dict[int, list[np.ndarray]] = {}
    sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
    objective.to(worker.device).eval()
    dtype = _autocast_dtype(objective, precision, worker.device)
    # In inference mode, gathered weights of a split model could not be trained afterwards.
    with torch.no_grad(), precision_context(dtype, worker.device):
        for batch, counts in batches_of_worker(batches, worker, batch_size):
            on_device = batch.to(worker.device)
            outputs = objective.outputs(on_device).float()
            if not counts:
                continue
            if not objective.is_contrastive:
                sums += _loss_and_count(objective.loss(outputs, on_device))
            for row, part in zip(batch.row_ids.tolist(), _by_row(objective, outputs, batch), strict=True):
                mine.setdefault(row, []).append(part)
    sums = worker.sum(sums).cpu()
    found = _gathered(mine, worker)
    rows = [_joined(found[row]) for row in range(batches.rows)]
    if objective.is_contrastive:
        sums = _contrastive_sums(objective, rows, batch_size)
    total, count = sums.tolist()
    return Predictions(rows, total / max(1.0, count))


def _loss_and_count(term: Term) -> torch.Tensor:
    return torch.stack([term.total.double(), term.predictions.double()])


def _contrastive_sums(objective: Any, rows: list[np.ndarray], batch_size: int) -> torch.Tensor:
    """Loss and count; each `batch_size` rows, in order, are each other's negatives."""
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(rows), batch_size):
        vectors = torch.from_numpy(np.concatenate(rows[start : start + batch_size]))
        sums += _loss_and_count(objective.loss(vectors, None))
    return sums


def _autocast_dtype(objective: TaskObjective, precision: str, device: torch.device) -> torch.dtype:
    """The dtype for products of float32 weights; weights of another dtype are used as they are."""
    if next(objective.parameters()).dtype != torch.float32:
        return torch.float32
    return compute_dtype(precision, device)  # type: ignore[arg-type]


def _by_row(objective: TaskObjective, outputs: torch.Tensor, batch: Batch) -> list[np.ndarray]:
    """The outputs of each sequence of a batch."""
    values = outputs.cpu()
    if objective.unit == "sequence":
        return list(values.numpy())
    sizes = batch.lengths
    if objective.unit == "position":
        ends = torch.searchsorted(batch.masked_positions, batch.lengths.cumsum(0))
        sizes = ends.diff(prepend=ends.new_zeros(1))
    return [part.numpy() for part in values.split(sizes.tolist())]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """A row's outputs, stacked if the row has several sequences."""
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _gathered(mine: dict[int, list[np.ndarray]], worker: Worker) -> dict[int, list[np.ndarray]]:
    if worker.world_size == 1:
        return mine
    by_worker: list[dict[int, list[np.ndarray]] | None] = [None] * worker.world_size
    dist.all_gather_object(by_worker, mine)
    return {row: parts for rows in by_worker if rows for row, parts in rows.items()}
