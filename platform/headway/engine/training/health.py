"""Check that gradients are finite, and keep the weights as they are if one is not."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.data.batch import Batch
from headway.engine.parallel.worker import Worker
from headway.engine.training.loss_scale import LossScale

_NONE = -1


class TrainingError(RuntimeError):
    """Training cannot continue, since a gradient is not finite."""


class StepHealth:
    """Watches the gradients' norms without waiting for them, if the optimizer can skip a step by itself.

    AdamW, LAMB and Muon leave the weights alone if a number on the GPU says so. It does from the first norm
    that is not finite, so that at the next look the weights are still those from before that step. Other
    optimizers only run once the norm has been read.

    In float16, a gradient that is not finite is not an error: that step alone is skipped, and the loss scale
    is halved. It is an error if even the smallest scale does not help.

    Attributes:
        skips_step: whether the latest step must be skipped, so that the optimizer must not run.
    """

    def __init__(self, optimizer: Any, worker: Worker, scale: LossScale | None = None) -> None:
        self._optimizer, self._worker, self._scale = optimizer, worker, scale
        reads_freely = worker.device.type == "cpu" and scale is None
        self._skips_by_itself = _takes_found_inf(optimizer) and not reads_freely
        self.skips_step = False
        self._bad_step = torch.full((), _NONE, dtype=torch.int64, device=worker.device)
        self._rows: deque[tuple[int, Sequence[Tensor]]] = deque()

    def saw(self, step: int, norm: Tensor, micro_batches: Sequence[Batch]) -> int | None:
        """Note the gradients' norm in the step after `step` others, before the optimizer runs.

        Returns:
            `step` if it is known already that the weights must not be moved.
        """
        self._rows.append((step, [batch.row_ids for batch in micro_batches]))
        is_good = norm.isfinite()
        first = torch.where(self._bad_step == _NONE, step, self._bad_step)
        good = self._bad_step if self._scale is None else torch.full_like(first, _NONE)
        self._bad_step = torch.where(is_good, good, first)
        found_inf = (self._bad_step != _NONE).float()
        if self._scale is not None:
            self._scale.update(found_inf)
        if self._skips_by_itself:
            self._optimizer.found_inf = found_inf
            return None
        self.skips_step = bool(found_inf)
        return step if self.skips_step and self._scale is None else None

    def look(self) -> int | None:
        """The first step that must end the run, if there was one; waits for the device."""
        bad_step = int(self._bad_step)
        if bad_step == _NONE:
            self._rows.clear()
            return None
        return bad_step if self._scale is None or self._scale.is_exhausted else None

    def error(self, step: int) -> TrainingError:
        """The error for a step that `saw` or `look` returned."""
        rows = next((row_ids for number, row_ids in self._rows if number == step), [])
        named = torch.cat(list(rows)).tolist()[:16] if rows else []
        problem, remedy = "is not finite", "try a lower learning_rate"
        if self._scale is not None:
            problem += ", however small the loss scale"
            remedy += ", or precision bf16 or fp32"
        return TrainingError(
            f"the gradient of step {step + 1} {problem}; {remedy} "
            f"(worker {self._worker.rank}, rows {named}; the state before the step is saved)"
        )


def _takes_found_inf(optimizer: Any) -> bool:
    """Whether the optimizer skips a step if `found_inf` is 1, as `torch.amp.GradScaler` expects."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
