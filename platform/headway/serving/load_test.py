"""A load test: keeps a server busy from many clients at once, and measures its answers."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_TIMEOUT = aiohttp.ClientTimeout(total=120)


@dataclass
class LoadResult:
    """What a load test measured.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds of each answer with status 200, in the order of arrival.
        statuses: how often each status came; 0 if the connection broke.
        texts: in requests with status 200.
        client_cpu: seconds of CPU time that the client took.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    texts: int = 0
    client_cpu: float = 0.0

    @property
    def failed(self) -> int:
        """Requests without status 200."""
        return sum(count for status, count in self.statuses.items() if status != 200)

    @property
    def texts_per_second(self) -> float:
        """Throughput of the server."""
        return self.texts / self.seconds

    def quantile(self, fraction: float) -> float:
        """The latency in seconds that this fraction of the answers did not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else float("nan")

    def summary(self) -> dict[str, float]:
        """The figures as a flat mapping."""
        return {
            "requests": sum(self.statuses.values()),
            "failed": self.failed,
            "texts_per_second": round(self.texts_per_second, 1),
            "p50_ms": round(self.quantile(0.5) * 1000, 2),
            "p99_ms": round(self.quantile(0.99) * 1000, 2),
            "client_cpu_share": round(self.client_cpu / self.seconds, 3),
        }


async def apply_load(
    url: str,
    requests: Iterable[tuple[Any, int]],
    clients: int,
    *,
    headers: dict[str, str] | None = None,
    check: Callable[[Any, Any], None] | None = None,
) -> LoadResult:
    """Send requests from several clients, each of which waits for an answer before its next request.

    Args:
        url: of the operation, in full.
        requests: JSON bodies, each with the number of texts in it.
        clients: number of them.
        headers: of every request.
        check: called with each body and the content of its answer.
    """
    result, remaining = LoadResult(), iter(requests)
    started, cpu = time.perf_counter(), _cpu_seconds()
    connector = aiohttp.TCPConnector(limit=clients)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, headers=headers) as session:

        async def client() -> None:
            for body, texts in remaining:
                await _ask(session, url, body, texts, result, check)

        await asyncio.gather(*(client() for _ in range(clients)))
    result.seconds = time.perf_counter() - started
    result.client_cpu = _cpu_seconds() - cpu
    return result


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    body: Any,
    texts: int,
    result: LoadResult,
    check: Callable[[Any, Any], None] | None,
) -> None:
    started = time.perf_counter()
    try:
        async with session.post(url, json=body) as response:
            content = await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError):
        result.statuses[0] += 1
        return
    result.statuses[status] += 1
    if status == 200:
        result.latencies.append(time.perf_counter() - started)
        result.texts += texts
        if check is not None:
            check(body, content)


def bodies(
    texts: Sequence[str], requests: int, texts_a_request: int, model: str | None
) -> Iterable[tuple[Any, int]]:
    """Bodies for `/v1/embeddings` and `/v1/classify`, which take the texts in order, again and again."""
    named = {} if model is None else {"model": model}
    for number in range(requests):
        first = number * texts_a_request
        chosen = [texts[(first + i) % len(texts)] for i in range(texts_a_request)]
        yield {**named, "input": chosen[0] if texts_a_request == 1 else chosen}, texts_a_request


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system
