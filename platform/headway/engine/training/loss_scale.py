"""A factor on the loss that keeps gradients in the range of float16, found on the device.

Float16 has no numbers between 0 and 6e-8, where most of a gradient lies. Gradients of a loss that is 65,536
times as large are in its range, and are divided again in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INITIAL = 2.0**16
_LEAST = 2.0**-10
_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_BEFORE_GROWTH = 2000


class LossScale:
    """Halves when a gradient is not finite, doubles after 2,000 steps whose gradients are.

    Micikevicius et al. 2018, "Mixed Precision Training", section 3.2. All workers see the same gradients, so
    their factors stay equal.

    Attributes:
        value: float32 scalar on the device; not read between two looks.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _INITIAL, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, found_inf: Tensor) -> None:
        """Take note of a step.

        Args:
            found_inf: float32 scalar on the device, 1 if its gradients were not finite, else 0.
        """
        torch._amp_update_scale_(
            self.value, self._good_steps, found_inf, _GROWTH, _BACKOFF, _STEPS_BEFORE_GROWTH
        )

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps in a row were skipped that it is not the factor's fault; waits."""
        return float(self.value) < _LEAST

    def reset(self) -> None:
        """Begin again."""
        self.value.fill_(_INITIAL)
        self._good_steps.zero_()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, in JSON's types."""
        return {"value": float(self.value), "good_steps": int(self._good_steps)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.value.fill_(state["value"])
        self._good_steps.fill_(state["good_steps"])
