"""Time training steps once they are warm, without making the device wait between them."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from torch import Tensor

from headway.engine.hardware.peak_rate import synchronise

WARM_STEPS = {"cpu": 2, "cuda": 10}
"""Steps in a row in which nothing is compiled that end the warm-up. On a GPU they also use up the batches
that were made ahead while the first ones compiled."""
MAX_WARMUP_STEPS = 50
_MIN_STEPS = 3


class Clock:
    """Counts the real tokens and the time of steps after warm-up.

    The device is waited for twice: before the first timed step and after the last.

    Attributes:
        device: the steps run on.
        warmup_seconds: from the clock's making to the first timed step.
        seconds: that the timed steps took.
        late_compilations: graphs that were compiled in timed steps.
    """

    def __init__(self, device: torch.device, *, steps: int | None, seconds: float | None) -> None:
        """Time so many steps, or as many as fit into so many seconds."""
        if steps is None and seconds is None:
            raise ValueError("give steps or seconds")
        self.device = device
        self.warmup_seconds = self.seconds = 0.0
        self.late_compilations = 0
        self._steps, self._budget = steps, seconds
        self._tokens: list[int | Tensor] = []
        self._made = time.perf_counter()
        self._started: float | None = None
        self._compiled = graphs_compiled()
        self._warmup_steps = self._quiet_steps = 0

    def step_ended(self, tokens: int | Tensor) -> bool:
        """Note that a step has been given to the device.

        Args:
            tokens: real ones of the step; a tensor is not read before the end.

        Returns:
            Whether enough steps have been timed.
        """
        if self._started is None:
            self._warm_up()
            return False
        self._tokens.append(tokens)
        if not self._is_over(time.perf_counter() - self._started):
            return False
        synchronise(self.device)
        self.seconds = time.perf_counter() - self._started
        self.late_compilations = graphs_compiled() - self._compiled
        return True

    @property
    def steps(self) -> int:
        """How many were timed."""
        return len(self._tokens)

    @property
    def tokens(self) -> int:
        """Real ones of the timed steps."""
        return sum(int(count) for count in self._tokens)

    def _warm_up(self) -> None:
        self._warmup_steps += 1
        compiled = graphs_compiled()
        self._quiet_steps = self._quiet_steps + 1 if compiled == self._compiled else 0
        self._compiled = compiled
        enough = WARM_STEPS[self.device.type]
        if self._quiet_steps >= enough or self._warmup_steps >= MAX_WARMUP_STEPS:
            synchronise(self.device)
            self._started = time.perf_counter()
            self.warmup_seconds = self._started - self._made

    def _is_over(self, seconds: float) -> bool:
        if self._steps is not None:
            return self.steps >= self._steps
        assert self._budget is not None
        return self.steps >= _MIN_STEPS and seconds >= self._budget


def graphs_compiled() -> int:
    """How many graphs `torch.compile` has compiled in this process."""
    dynamo: Any = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])
