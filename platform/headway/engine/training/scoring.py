"""What a model says of every row of a split, gathered over all workers, with its mean loss."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.engine.hardware.device import compute_dtype, precision_context
from headway.engine.parallel.worker import Worker
from headway.engine.training.evaluation import batches_of_share
from headway.engine.training.objectives import TaskObjective


class Predictions(NamedTuple):
    """What a model says.

    Attributes:
        rows: float32 outputs of each row of the batches, in the rows' order; the shape is the objective's.
        loss: mean over all that was predicted.
    """

    rows: list[np.ndarray]
    loss: float


def predict(
    objective: TaskObjective, batches: BatchSource, worker: Worker, *, batch_size: int, precision: str
) -> Predictions:
    """Run a model over every row once, each worker over its share; all workers get all predictions."""
    mine: dict[int, list[np.ndarray]] = {}
    sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
    objective.to(worker.device).eval()
    dtype = _autocast_dtype(objective, precision, worker.device)
    # A split model's weights, gathered in inference mode, could not be trained afterwards.
    with torch.no_grad(), precision_context(dtype, worker.device):
        for batch, counts in batches_of_share(batches, worker, batch_size):
            on_device = batch.to(worker.device)
            outputs = objective.outputs(on_device).float()
            if not counts:
                continue
            term = objective.loss(outputs, on_device)
            sums += torch.stack([term.total.double(), term.predictions.double()])
            for row, part in zip(batch.row_ids.tolist(), _by_row(objective, outputs, batch), strict=True):
                mine.setdefault(row, []).append(part)
    total, count = worker.sum(sums).tolist()
    rows = _gathered(mine, worker)
    return Predictions([_joined(rows[row]) for row in range(batches.rows)], total / max(1.0, count))


def _autocast_dtype(objective: TaskObjective, precision: str, device: torch.device) -> torch.dtype:
    """What products of float32 weights are computed in; weights of another type are taken as they are."""
    if next(objective.parameters()).dtype != torch.float32:
        return torch.float32
    return compute_dtype(precision, device)  # type: ignore[arg-type]


def _by_row(objective: TaskObjective, outputs: torch.Tensor, batch: Batch) -> list[np.ndarray]:
    """Outputs of each sequence of a batch."""
    values = outputs.cpu()
    if objective.unit == "sequence":
        return list(values.numpy())
    sizes = batch.lengths
    if objective.unit == "position":
        ends = torch.searchsorted(batch.masked_positions, batch.lengths.cumsum(0))
        sizes = ends.diff(prepend=ends.new_zeros(1))
    return [part.numpy() for part in values.split(sizes.tolist())]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """A row's outputs; stacked where a row is several sequences."""
    return parts[0] if len(parts) == 1 else np.stack(parts)


def _gathered(mine: dict[int, list[np.ndarray]], worker: Worker) -> dict[int, list[np.ndarray]]:
    if worker.world_size == 1:
        return mine
    shares: list[dict[int, list[np.ndarray]] | None] = [None] * worker.world_size
    dist.all_gather_object(shares, mine)
    return {row: parts for share in shares if share for row, parts in share.items()}
