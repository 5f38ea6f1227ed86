"""Measure losses, speed and memory between two reports of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from headway.data.batch import Batch
from headway.engine.hardware.peak_rate import matrix_product_rate, peak_memory_bytes
from headway.engine.parallel.worker import Worker
from headway.engine.training.flops import TrainingFlops

Metrics = dict[str, float]


@dataclass
class Meter:
    """This worker's sums since the last report.

    Attributes:
        losses: name → float32 scalar, the worker's part of the mean loss, summed over steps.
        tokens: trained on.
        flops: useful ones; see `flops`.
        steps: optimizer steps.
        seconds: spent in the steps.
        gradient_norm: of the last step, before clipping.
        learning_rate: of the last step.
    """

    losses: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0
    flops: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    gradient_norm: float | Tensor = 0.0
    learning_rate: float = 0.0

    def add(self, losses: dict[str, Tensor], batches: Sequence[Batch], flops: TrainingFlops) -> None:
        """Count a step: this worker's part of its losses, and its micro-batches, which are on the host."""
        for name, loss in losses.items():
            self.add_loss(name, loss)
        self.tokens += sum(int(batch.lengths.sum()) for batch in batches)
        self.flops += sum(flops.of_batch(batch) for batch in batches)

    def add_loss(self, name: str, part: Tensor) -> None:
        """Count this worker's part of a step's loss."""
        self.losses[name] = self.losses[name] + part if name in self.losses else part

    def state(self) -> dict[str, Any]:
        """The sums as JSON types, to continue from after a restart."""
        losses = {name: float(loss) for name, loss in self.losses.items()}
        return vars(self) | {"losses": losses, "gradient_norm": float(self.gradient_norm)}

    @classmethod
    def resumed(cls, states: Sequence[dict[str, Any]], worker: Worker) -> Meter:
        """Continue from what `state` returned for each data rank.

        In a group of another size, the first worker takes over the sums of all ranks.
        """
        meters = [cls(**state) for state in states]
        for meter in meters:
            meter.losses = {
                name: torch.tensor(loss, device=worker.device) for name, loss in meter.losses.items()
            }
        if len(meters) == worker.data_size:
            return meters[worker.data_rank]
        total = replace(meters[0], losses={}, tokens=0, flops=0.0) if meters else cls()
        for meter in meters if worker.rank == 0 else []:
            total.tokens += meter.tokens
            total.flops += meter.flops
            for name, loss in meter.losses.items():
                total.add_loss(name, loss)
        return total

    def metrics(self, worker: Worker, dtype: torch.dtype) -> Metrics:
        """The metrics of all workers together; losses are means over the steps."""
        names = sorted(self.losses)
        rate = matrix_product_rate(dtype, worker.device)
        row = [*(float(self.losses[name]) for name in names), self.tokens, self.flops, rate]
        sums = worker.sum(torch.tensor(row, dtype=torch.float64, device=worker.device)).tolist()
        *losses, tokens, flops, rate = sums
        # If the model is split, several workers compute the same part of the batch.
        rate *= worker.world_size / worker.data_size
        metrics = {f"{name}_loss": loss / self.steps for name, loss in zip(names, losses, strict=True)}
        return metrics | {
            "gradient_norm": float(self.gradient_norm),
            "learning_rate": self.learning_rate,
            "tokens_per_second": tokens / self.seconds,
            "utilisation": flops / self.seconds / rate,
            "peak_memory_gib": peak_memory_bytes(worker.device) / 2**30,
        }
