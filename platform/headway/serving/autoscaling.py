"""Ray Serve's autoscaling of replicas, by the tokens that wait for them."""

from __future__ import annotations

import math
from typing import Any


class WaitingTokensPolicy:
    """Wants as many replicas as the waiting tokens are worth; at least one while a request is in progress.

    Args:
        tokens: waiting tokens that are worth one replica.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas to run, and no state."""
        reported = context.aggregated_metrics.get("waiting_tokens", {})
        waiting = max(reported.values(), default=0.0)
        # A request in progress keeps one replica, even if nothing waits.
        busy = 1 if context.total_num_requests > 0 else 0
        return max(busy, math.ceil(waiting / self._tokens)), {}
