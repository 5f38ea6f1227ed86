"""Scale the loss to keep gradients in the range of float16, without reading them on the host.

Float16 has no numbers between 0 and 6e-8, but most of a gradient's numbers are there. Gradients of a loss
that is 65,536 times as large are in its range, and are divided by the factor in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_INITIAL = 2.0**16
_MIN = 2.0**-10
_GROWTH, _BACKOFF = 2.0, 0.5
_STEPS_BEFORE_GROWTH = 2000


class LossScale:
    """A factor that halves if a gradient is not finite, and doubles after 2,000 steps with finite ones.

    The rule is that of Micikevicius et al. 2018, "Mixed Precision Training", section 3.2. All workers see the
    same gradients, so their factors stay equal.

    Attributes:
        value: float32 scalar on the device; the host does not read it in every step.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), _INITIAL, device=device)
        self._good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, found_inf: Tensor) -> None:
        """Note whether a step's gradients were finite.

        Args:
            found_inf: float32 scalar on the device, 1 if they were not finite, else 0.
        """
        torch._amp_update_scale_(
            self.value, self._good_steps, found_inf, _GROWTH, _BACKOFF, _STEPS_BEFORE_GROWTH
        )

    @property
    def is_exhausted(self) -> bool:
        """Whether so many steps were skipped that the factor cannot be the reason; waits for the device."""
        return float(self.value) < _MIN

    def reset(self) -> None:
        """Return to the initial factor."""
        self.value.fill_(_INITIAL)
        self._good_steps.zero_()

    def state(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON types."""
        return {"value": float(self.value), "good_steps": int(self._good_steps)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.value.fill_(state["value"])
        self._good_steps.fill_(state["good_steps"])
