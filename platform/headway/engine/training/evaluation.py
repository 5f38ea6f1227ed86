"""Measure mean losses over validation rows, with all workers together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.engine.parallel.worker import Worker
from headway.engine.training.meter import Metrics


def batches_of_worker(source: BatchSource, worker: Worker, batch_size: int) -> Iterator[tuple[Batch, bool]]:
    """A worker's part of all rows in batches, each with whether it counts.

    Workers that hold slices of the weights gather them together for every batch. So a worker with one batch
    less than others runs its last one again, which does not count.
    """
    own_batches = source.in_order(worker.data_rank, worker.data_size, batch_size)
    max_rows = -(-source.rows // worker.data_size)
    batches = -(-max_rows // batch_size) if worker.mesh is not None else 0
    done, batch = 0, None
    for batch in own_batches:
        done += 1
        yield batch, True
    for _ in range(done, batches):
        if batch is None:  # there are fewer rows than workers
            batch = next(source.in_order(0, worker.data_size, 1))
        yield batch, False


def mean_losses(module: Any, validation: BatchSource, worker: Worker, batch_size: int) -> Metrics:
    """The mean of each of an objective's losses, and its accuracy; the same on every worker.

    Args:
        module: an objective, or a pipeline of one.
        validation: the rows.
        worker: this process, which gets its part of the rows.
        batch_size: sequences at a time.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64, device=worker.device) for name in module.loss_names}
    with torch.no_grad():  # a sharded weight that was gathered in inference mode could not be trained
        for batch, counts in batches_of_worker(validation, worker, batch_size):
            terms = module(batch.to(worker.device))
            for name, term in terms.items() if counts else ():
                sums[name] += torch.stack([part.detach().double() for part in term])
    # There is one sum for all losses, in which workers without rows take part too.
    rows = worker.sum(torch.stack(list(sums.values()))).tolist()
    metrics: Metrics = {}
    for name, (total, count, correct) in zip(sums, rows, strict=True):
        metrics[f"validation_{name}_loss"] = total / max(count, 1)
        metrics[f"validation_{name}_accuracy"] = correct / max(count, 1)
    metrics["validation_loss"] = sum(v for k, v in metrics.items() if k.endswith("_loss"))
    return metrics
