"""Ray Serve's autoscaling of replicas, by the tokens that they have to compute."""

from __future__ import annotations

import math
from typing import Any

UNANSWERED = "unanswered_tokens"
"""What replicas report: tokens that wait or are being computed, as the gateway said with the last pack."""


class UnansweredTokensPolicy:
    """Wants as many replicas as the unanswered tokens are worth; at least one while a request is in progress.

    What is being computed counts too: clients that each wait for an answer keep the sum the same, however
    many replicas there are. Of the tokens that only wait, more replicas leave none, and would be stopped for
    doing their work.

    Args:
        tokens: unanswered tokens that are worth one replica.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas to run, and no state."""
        reported = context.aggregated_metrics.get(UNANSWERED, {})
        unanswered = max(reported.values(), default=0.0)
        # A request in progress keeps one replica, whatever was reported last.
        busy = 1 if context.total_num_requests > 0 else 0
        return max(busy, math.ceil(unanswered / self._tokens)), {}
