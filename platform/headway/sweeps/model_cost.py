"""Measures what a model costs to run, for searches that weigh cost against quality."""

from __future__ import annotations

import copy
import statistics
import time
from itertools import islice

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from headway.data.batches import BatchSource
from headway.engine.hardware.peak_rate import synchronise
from headway.engine.model.lora import merged
from headway.engine.training.trainer import Metrics, Trainer

_WARM_UP, _ROWS = 4, 24


def model_cost(trainer: Trainer, validation: BatchSource | None) -> Metrics:
    """The number of weights, and the median time of a forward pass over one of 24 validation rows, in ms.

    Measured on the model that will be saved, whose low-rank additions are merged, under the conditions of
    training: the trial's threads and precision, other trials beside it. A model that is split over workers
    is measured as it is.
    """
    compute = trainer.optimizer_step.compute
    compute.follow()
    module = _as_saved(compute.module).eval()
    costs = {"parameters": float(sum(weight.numel() for weight in module.parameters()))}
    if validation is None:
        return costs
    device = trainer.worker.device
    seconds = []
    with torch.no_grad():
        for batch in islice(validation.in_order(0, 1, 1), _WARM_UP + _ROWS):
            started = time.perf_counter()
            module(batch.to(device))
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    # With very few rows, the warm-up passes are better than none.
    return costs | {"latency_ms": 1000.0 * statistics.median(seconds[_WARM_UP:] or seconds)}


def _as_saved(module: nn.Module) -> nn.Module:
    """An objective with its model as it is saved; itself if that makes no difference."""
    is_split = any(isinstance(weight, DTensor) for weight in module.parameters())
    if is_split or (model := merged(module.model)) is module.model:
        return module
    result = copy.deepcopy(module)
    result.model = model
    return result
