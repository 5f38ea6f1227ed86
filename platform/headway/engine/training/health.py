"""Whether training still makes sense: gradients are finite, or the weights stay as they were."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headway.data.batch import Batch
from headway.engine.parallel.worker import Worker

_NONE = -1


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no number any more."""


class StepHealth:
    """Watches the gradients' norms without waiting for them, if the optimizer can skip a step by itself.

    AdamW, LAMB and Muon are told by a number on the GPU to leave the weights alone. From the first norm that
    is not finite on they are told so, and at the next look the weights are still those before that step.
    Other optimizers are only let run once the norm has been read.
    """

    def __init__(self, optimizer: Any, worker: Worker) -> None:
        self._optimizer, self._worker = optimizer, worker
        self._skips_by_itself = worker.device.type != "cpu" and _takes_found_inf(optimizer)
        self._bad_step = torch.full((), _NONE, dtype=torch.int64, device=worker.device)
        self._rows: deque[tuple[int, Sequence[Tensor]]] = deque()

    def saw(self, step: int, norm: Tensor, micro_batches: Sequence[Batch]) -> int | None:
        """Take note of the norm of the step after `step` others, before the optimizer runs.

        Returns:
            `step` if it is known already that the weights must not be moved by it.
        """
        self._rows.append((step, [batch.row_ids for batch in micro_batches]))
        if not self._skips_by_itself:
            if not math.isfinite(float(norm)):
                return step
            self._rows.clear()
            return None
        was_good = self._bad_step == _NONE
        self._bad_step = torch.where(was_good & ~norm.isfinite(), step, self._bad_step)
        self._optimizer.found_inf = (self._bad_step != _NONE).float()
        return None

    def look(self) -> int | None:
        """The step whose gradients were not finite, if there was one; waits for the device."""
        if not self._skips_by_itself:
            return None
        found = int(self._bad_step)
        if found == _NONE:
            self._rows.clear()
            return None
        return found

    def error(self, step: int) -> TrainingError:
        """What to raise for a step that `saw` or `look` named."""
        rows = next((row_ids for number, row_ids in self._rows if number == step), [])
        named = torch.cat(list(rows)).tolist()[:16] if rows else []
        return TrainingError(
            f"the gradient of step {step + 1} is not finite; try a lower learning_rate "
            f"(worker {self._worker.rank}, rows {named}; the state before the step is saved)"
        )


def _takes_found_inf(optimizer: Any) -> bool:
    """Whether the optimizer skips a step if `found_inf` is 1, as `torch.amp.GradScaler` asks for."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
