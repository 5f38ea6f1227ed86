"""Counts requests and measures how long they take."""

from __future__ import annotations

import time
from dataclasses import dataclass

from headway.serving.http.asgi import App, Message, Receive, Send, route_path
from headway.serving.metrics import Metrics

_NO_ANSWER = 499


@dataclass
class RequestMetrics:
    """ASGI middleware that counts by path and status.

    Attributes:
        app: what answers.
        metrics: where it counts.
    """

    app: App
    metrics: Metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = _NO_ANSWER

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self.app(scope, receive, watched_send)
        # Paths without a route share one label: clients could make up any number of them.
        path = route_path(scope)
        self.metrics.requests.labels(path, str(status)).inc()
        self.metrics.latency.labels(path).observe(time.perf_counter() - started)
