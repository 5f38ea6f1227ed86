"""Mean losses over validation rows, measured by all workers together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from headway.data.batch import Batch
from headway.data.batches import BatchSource
from headway.engine.parallel.worker import Worker
from headway.engine.training.meter import Metrics


def batches_of_share(source: BatchSource, worker: Worker, batch_size: int) -> Iterator[tuple[Batch, bool]]:
    """A worker's share of every row, each batch with whether it counts.

    Workers that hold slices of the weights gather them together for every batch. One whose share has a batch
    less than another's runs its last one again, which does not count.
    """
    own = source.in_order(worker.data_rank, worker.data_size, batch_size)
    largest_share = -(-source.rows // worker.data_size)
    batches = -(-largest_share // batch_size) if worker.mesh is not None else 0
    done, batch = 0, None
    for batch in own:
        done += 1
        yield batch, True
    for _ in range(done, batches):
        if batch is None:  # there are fewer rows than workers
            batch = next(source.in_order(0, worker.data_size, 1))
        yield batch, False


def mean_losses(module: Any, validation: BatchSource, worker: Worker, batch_size: int) -> Metrics:
    """Mean of each of an objective's losses, and how many predictions were right; the same on every worker.

    Args:
        module: an objective, or what stands in its place.
        validation: the rows.
        worker: each has its share of them.
        batch_size: sequences at a time.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64, device=worker.device) for name in module.loss_names}
    with torch.no_grad():  # a sharded weight that was gathered in inference mode could not be trained
        for batch, counts in batches_of_share(validation, worker, batch_size):
            terms = module(batch.to(worker.device))
            for name, term in terms.items() if counts else ():
                sums[name] += torch.stack([part.detach().double() for part in term])
    # One sum for all of them, which a worker without a row enters too.
    rows = worker.sum(torch.stack(list(sums.values()))).tolist()
    metrics: Metrics = {}
    for name, (total, count, correct) in zip(sums, rows, strict=True):
        metrics[f"validation_{name}_loss"] = total / max(count, 1)
        metrics[f"validation_{name}_accuracy"] = correct / max(count, 1)
    metrics["validation_loss"] = sum(v for k, v in metrics.items() if k.endswith("_loss"))
    return metrics
