"""Well-behaved clients beside one that floods the server: do they notice?

    python benchmarks/flood_drill.py                    # about 2 minutes on 2 cores
    python benchmarks/flood_drill.py --seconds 5

64 clients with a key each ask for one text at a time, first alone. Then another client sends the largest
requests allowed, 4 at a time, as fast as they are answered or refused, while 500 sockets are open on which
nothing is sent and 50 bodies drip in byte by byte. At last the 64 are alone again. It passes if their p99 in
the flood is at most twice what it is alone, none of their requests fails, and the gateway's memory is back
where it was; otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from lib.ports import free_port
from lib.random_encoders import random_texts, save_random_encoder
from transformers import BertConfig

from headway.cluster import connect
from headway.config.serve import ServeConfig
from headway.serving.deploy import deploy, undeploy
from headway.serving.load_test import LoadResult, apply_load
from headway.serving.scheduling.messages import Release

CLIENTS = 64
LARGE_AT_A_TIME = 4
IDLE_SOCKETS, DRIPPING_BODIES = 500, 50
FLOODER = "flooder"
MAX_RATIO = 2.0
MEMORY_TOLERANCE_MB = 64
"""Of a process that has served thousands of requests: its allocator keeps some of what it had."""

SHAPE = {
    "vocab_size": 17_581,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}


class Phase(NamedTuple):
    """How the well-behaved clients fared, and the gateway's memory at the end."""

    name: str
    requests: int
    failed: int
    p50_ms: float
    p99_ms: float
    memory_mb: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase")
    parser.add_argument("--flood", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.flood:
        print(json.dumps(flood(options.flood, options.seconds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        figures = drill(Path(folder), options.seconds)
    print(json.dumps(figures))
    sys.exit(not figures["passed"])


def drill(root: Path, seconds: float) -> dict[str, Any]:
    """Run the whole drill; returns its figures."""
    names = [FLOODER, *map(str, range(CLIENTS))]
    keys = [f"{hashlib.sha256(name.encode()).hexdigest()} {name}\n" for name in names]
    (root / "keys.txt").write_text("".join(keys))
    model = save_random_encoder(root / "model", BertConfig(**SHAPE))
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect.connect(None, "sqlite:///:memory:")
    config = ServeConfig(
        model="x",
        application="headway",
        port=free_port(),
        replicas=(1, 1),
        precision="fp32",
        api_keys_file=root / "keys.txt",
    )
    url = deploy(config, [Release("flooded", "1", str(model))], os.cpu_count() or 1)
    try:
        behave(url, seconds / 3)  # warms everything up
        phases = [measured("alone", url, seconds)]
        with flooding(url, seconds + 5.0) as flooder:
            time.sleep(3.0)
            phases.append(measured("in the flood", url, seconds))
            answers = json.loads(flooder.communicate()[0].splitlines()[-1])
        time.sleep(5.0)
        phases.append(measured("alone again", url, seconds))
    finally:
        undeploy()
        connect.disconnect()
    show(phases, answers)
    return summary(phases, answers)


def measured(name: str, url: str, seconds: float) -> Phase:
    """A phase of some seconds."""
    result = behave(url, seconds)
    p50, p99 = (round(1000 * result.quantile(fraction), 1) for fraction in (0.5, 0.99))
    return Phase(name, result.statuses.total(), result.failed, p50, p99, gateway_memory())


def behave(url: str, seconds: float) -> LoadResult:
    """What the well-behaved clients get in some seconds."""
    return asyncio.run(_behave(url, seconds))


async def _behave(url: str, seconds: float) -> LoadResult:
    until = time.monotonic() + seconds
    texts = itertools.cycle(random_texts(5_000, seed=1))

    def requests() -> Iterator[tuple[Any, int]]:
        while time.monotonic() < until:
            yield {"input": next(texts)}, 1

    parts = await asyncio.gather(
        *(apply_load(f"{url}/v1/embeddings", requests(), 1, headers=key(str(i))) for i in range(CLIENTS))
    )
    total = LoadResult(max(part.seconds for part in parts))
    for part in parts:
        total.latencies += part.latencies
        total.statuses += part.statuses
    return total


def key(name: str) -> dict[str, str]:
    """The header of a client, whose key is its name."""
    return {"authorization": f"Bearer {name}"}


@contextlib.contextmanager
def flooding(url: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Flood the server from another process, which takes nothing but cores from the one that measures."""
    command = [sys.executable, __file__, "--flood", url, "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def flood(url: str, seconds: float) -> dict[str, int]:
    """Flood a server for some seconds; returns how often each status came, and bodies were cut off."""
    address = (str(urlsplit(url).hostname), int(urlsplit(url).port or 0))
    until, statuses = time.monotonic() + seconds, Counter[str]()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(IDLE_SOCKETS)]
        threads = [threading.Thread(target=drip, args=(address, until, statuses))]
        threads += [
            threading.Thread(target=send_large, args=(address, until, statuses, number))
            for number in range(LARGE_AT_A_TIME)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses["idle sockets"] = len(idle)
    return dict(statuses)


def large_requests() -> list[tuple[str, bytes]]:
    """The largest requests that are allowed, and one that is larger: paths and bodies."""
    text = " ".join(random_texts(400, seed=2))
    most = [text[i * 7 : i * 7 + 32_000] for i in range(256)]
    whole = [text[i * 7 : i * 7 + 95_000] for i in range(4)]
    contents = [
        ("embeddings", {"input": most}),
        ("embeddings", {"input": whole, "overlong": "window"}),
        ("attention", {"input": text[:10_000], "tokens": 128}),
        ("rerank", {"query": text[:1_200], "documents": most[:250]}),
        ("embeddings", {"input": whole * 8, "overlong": "window"}),
    ]
    return [(f"/v1/{path}", json.dumps(content).encode()) for path, content in contents]


def send_large(address: tuple[str, int], until: float, statuses: Counter[str], number: int) -> None:
    """Send large requests one after the other."""
    requests = itertools.islice(itertools.cycle(large_requests()), number, None)
    headers = {**key(FLOODER), "content-type": "application/json"}
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(*address, timeout=max(1.0, until - time.monotonic()))
        path, body = next(requests)
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            response.read()
            statuses[str(response.status)] += 1
        except OSError:
            statuses["no answer"] += 1
        finally:
            connection.close()


def drip(address: tuple[str, int], until: float, statuses: Counter[str]) -> None:
    """Keep bodies on their way to the server, a byte of each every half second."""
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"authorization: Bearer {FLOODER}\r\ncontent-length: 1000000\r\n\r\n".encode()
    bodies: list[socket.socket] = []
    while time.monotonic() < until:
        while len(bodies) < DRIPPING_BODIES:
            bodies.append(socket.create_connection(address))
            bodies[-1].sendall(head)
        for body in list(bodies):
            try:
                body.sendall(b" ")
            except OSError:
                statuses["bodies cut off"] += 1
                bodies.remove(body)
                body.close()
        time.sleep(0.5)
    for body in bodies:
        body.close()


def gateway_memory() -> int:
    """Megabytes that the gateway's process holds."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    [replica] = details["applications"]["headway"]["deployments"]["Gateway"]["replicas"]
    pages = Path(f"/proc/{replica['pid']}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def show(phases: list[Phase], answers: dict[str, int]) -> None:
    """Print the figures as a table."""
    print(f"\n{CLIENTS} clients, one text of 80 tokens a request:\n")
    print(f"{'':14}{'requests':>10}{'failed':>8}{'p50':>11}{'p99':>11}{'gateway':>11}")
    for name, requests, failed, p50, p99, memory in phases:
        print(f"{name:14}{requests:>10,}{failed:>8}{p50:>8} ms{p99:>8} ms{memory:>8} MB")
    told = ", ".join(f"{name}: {count}" for name, count in sorted(answers.items()))
    print(f"\nWhat the flooding client got, by status: {told}\n")


def summary(phases: list[Phase], answers: dict[str, int]) -> dict[str, Any]:
    """The figures as one flat mapping."""
    before, during, after = phases
    alone = max(before.p99_ms, after.p99_ms)
    failed = sum(phase.failed for phase in phases)
    ratio = round(during.p99_ms / alone, 2)
    back = after.memory_mb - before.memory_mb <= MEMORY_TOLERANCE_MB
    return {
        "requests": during.requests,
        "failed": failed,
        "p99_alone_ms": alone,
        "p99_flood_ms": during.p99_ms,
        "ratio": ratio,
        "memory_before_mb": before.memory_mb,
        "memory_flood_mb": during.memory_mb,
        "memory_after_mb": after.memory_mb,
        "flooder": answers,
        "passed": failed == 0 and ratio <= MAX_RATIO and back,
    }


if __name__ == "__main__":
    main()
