"""What a model costs to run, for searches that weigh it against quality."""

from __future__ import annotations

import statistics
import time
from itertools import islice

import torch

from headway.data.batches import BatchSource
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.training.trainer import Metrics, Trainer

COSTS = ("latency_ms", "parameters")
"""Measures of a model that do not depend on its weights' values; less is better."""
_WARM_UP, _ROWS = 4, 24


def model_cost(trainer: Trainer, validation: BatchSource | None) -> Metrics:
    """Milliseconds of a forward pass over one validation row, the median of 24, and the number of weights.

    Measured as the model is trained: with the trial's threads and precision, and beside other trials.
    """
    found = {"parameters": float(sum(weight.numel() for weight in trainer.objective.parameters()))}
    if validation is None:
        return found
    compute = trainer.optimizer_step.compute
    compute.follow()
    module = compute.module.eval()
    device = trainer.worker.device
    seconds = []
    with torch.no_grad():
        for batch in islice(validation.in_order(0, 1, 1), _WARM_UP + _ROWS):
            started = time.perf_counter()
            module(batch.to(device))
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    # Of very few rows, the first ones are better than none.
    return found | {"latency_ms": 1000.0 * statistics.median(seconds[_WARM_UP:] or seconds)}
