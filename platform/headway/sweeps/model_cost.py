"""Measures what a model costs to run, for searches that weigh cost against quality."""

from __future__ import annotations

import statistics
import time
from itertools import islice

import torch
from torch import nn

from headway.data.batches import BatchSource
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.model.lora import without_additions
from headway.engine.training.trainer import Metrics, Trainer

_WARM_UP, _ROWS = 4, 24


def model_cost(trainer: Trainer, validation: BatchSource | None) -> Metrics:
    """The number of weights, and the median time of a forward pass over one of 24 validation rows, in ms.

    Both are of the model that is saved, into which low-rank additions are merged. The time is measured under
    the conditions of training: the trial's threads and precision, other trials beside it.
    """
    with without_additions(trainer.objective):
        costs = {"parameters": float(sum(weight.numel() for weight in trainer.objective.parameters()))}
    if validation is None:
        return costs
    compute = trainer.optimizer_step.compute
    compute.follow()
    module = compute.module.eval()
    with without_additions(module):
        return costs | {"latency_ms": 1000.0 * _latency(module, validation, trainer.worker.device)}


@torch.no_grad()
def _latency(module: nn.Module, rows: BatchSource, device: torch.device) -> float:
    """Seconds of a forward pass over one row."""
    seconds = []
    for batch in islice(rows.in_order(0, 1, 1), _WARM_UP + _ROWS):
        started = time.perf_counter()
        module(batch.to(device))
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    # With very few rows, the warm-up passes are better than none.
    return statistics.median(seconds[_WARM_UP:] or seconds)
