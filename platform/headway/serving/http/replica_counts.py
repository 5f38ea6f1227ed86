"""How many replicas of each model are up, as Ray Serve knows it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle


class ReplicaCounts:
    """Asks Ray Serve's controller, and keeps what it says for a moment.

    Args:
        encoders: the deployment of each model, by its name.
    """

    def __init__(self, encoders: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._deployments = {name: encoder.deployment_name for name, encoder in encoders.items()}
        self._running = dict.fromkeys(encoders, 0)
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def running(self, max_age_s: float = 0.5) -> dict[str, int]:
        """Replicas that are up, by model; what was known last if the controller does not answer.

        Args:
            max_age_s: seconds ago that the controller may have said it.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at > max_age_s:
                with contextlib.suppress(RayError, RayServeException):
                    self._running = await asyncio.to_thread(self._ask)
                self._asked_at = time.monotonic()
        return self._running

    def _ask(self) -> dict[str, int]:
        from ray import serve

        application = serve.get_replica_context().app_name
        states = serve.status().applications[application].deployments
        return {
            name: states[deployment].replica_states.get("RUNNING", 0) if deployment in states else 0
            for name, deployment in self._deployments.items()
        }
