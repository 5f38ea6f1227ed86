"""Embeddings over HTTP: Headway against four other servers, one model, one client.

    python benchmarks/serve_speed.py            # about 8 minutes on 2 cores, once the peers are installed
    python benchmarks/serve_speed.py --short    # a tenth of the texts

Headway serves it as it is, and quantised to int8 by its step `quantize`. Peers: infinity-emb, FastAPI with
transformers, `mlflow models serve`, and ONNX Runtime with int8 weights behind FastAPI. One server after the
other, on the same machine, with the same client: short sentences of BBC articles (29 tokens on average) from
64 clients with one text a request, then 8 clients with 32. The client shares the cores with the server. Peers
and MiniLM are installed into `runs/peers` by pip when they are missing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from lib.serve_peers import Peer, peers

from headway.config.sources import SourceConfig
from headway.data.sources.documents import read_documents
from headway.serving.load_test import apply_load

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "runs" / "peers"


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--short", action="store_true")
    arguments.add_argument("--peers", type=Path, default=PEERS, help="folder of the peers' environments")
    options = arguments.parse_args()
    model, servers = peers(options.peers)
    texts = sentences()
    scale = 0.1 if options.short else 1.0
    outcomes = {name: measured_or_why_not(name, make, texts, scale) for name, make in servers.items()}
    report(outcomes, limit(), texts, model)


class ServerError(RuntimeError):
    """A server did not come up."""


def measured_or_why_not(
    name: str, make: Callable[[], Peer], texts: list[str], scale: float
) -> dict[str, Any] | str:
    """What `measure` gives; in one line what went wrong, if a server fails."""
    try:
        return measure(name, make(), texts, scale)
    except (ServerError, OSError, subprocess.CalledProcessError, httpx.HTTPError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{name}: {reason}", file=sys.stderr)
        return reason


def measure(name: str, peer: Peer, texts: list[str], scale: float) -> dict[str, Any]:
    """Start a server, load it in three ways, and stop it."""
    singles, batches = (int(count * scale) for count in peer.requests)
    with running(peer) as started:
        print(f"{name}: up after {started:.1f} s", file=sys.stderr)
        vectors = embed(peer, texts[:64])
        load(peer, texts, max(64, singles // 10), 1, 64)
        spent = cpu_by_deployment()
        one = load(peer, texts, singles, 1, 64)
        now = cpu_by_deployment()
        return {
            "cold_start_s": round(started, 1),
            "one": one,
            "cpu": {title: round((now[title] - spent.get(title, 0.0)) / one["seconds"], 2) for title in now},
            "batch": load(peer, texts, batches, 32, 8),
            "alone": load(peer, texts, int(200 * max(scale, 0.25)), 1, 1),
            "vectors": vectors,
        }


def load(peer: Peer, texts: list[str], requests: int, size: int, clients: int) -> dict[str, Any]:
    """Requests of so many texts from so many clients."""
    work = (
        (peer.body([texts[(number * size + i) % len(texts)] for i in range(size)]), size)
        for number in range(requests)
    )
    result = asyncio.run(apply_load(peer.url, work, clients))
    return result.summary() | {"seconds": result.seconds}


def report(outcomes: dict[str, dict[str, Any] | str], peak: float, texts: list[str], model: Path) -> None:
    columns = (
        "texts/s, 64 x 1",
        "p50 ms",
        "p99 ms",
        "texts/s, 8 x 32",
        "p50 ms, alone",
        "failed",
        "cold start s",
    )
    print(f"{'':13}" + "".join(f"{column:>17}" for column in columns))
    for name, row in outcomes.items():
        if isinstance(row, str):
            print(f"{name:13}  failed: {row[:150]}")
            continue
        one, batch, alone = row["one"], row["batch"], row["alone"]
        failed = one["failed"] + batch["failed"] + alone["failed"]
        figures = (
            *(one["texts_per_second"], one["p50_ms"], one["p99_ms"]),
            *(batch["texts_per_second"], alone["p50_ms"], failed, row["cold_start_s"]),
        )
        print(f"{name:13}" + "".join(f"{figure:>17}" for figure in figures))
    print(json.dumps(summary(outcomes, peak, flops_a_text(texts, model))))


def summary(outcomes: dict[str, dict[str, Any] | str], peak: float, flops: float) -> dict[str, Any]:
    """Ratios to each peer, the least cosine to infinity's vectors, and the share of the peak that is used.

    A figure that needs a server that failed is None.
    """
    failed = {name: row for name, row in outcomes.items() if isinstance(row, str)}
    results = {name: row for name, row in outcomes.items() if not isinstance(row, str)}
    ours, theirs = results.get("headway"), results.get("infinity")
    figures: dict[str, Any] = {
        "did_not_run": failed,
        "p99_ratio_vs_infinity": ratio(ours, theirs, "one", "p99_ms"),
    }
    for kind, name in (("one", ""), ("batch", "_batch32")):
        in_int8 = ratio(results.get("headway-int8"), theirs, kind, "texts_per_second")
        figures[f"int8_ratio_vs_infinity{name}"] = in_int8
    for name, peer in results.items():
        if theirs is not None:
            cosine = float((peer["vectors"] * theirs["vectors"]).sum(1).min())
            figures[f"least_cosine_{name}_to_infinity"] = round(cosine, 5)
        if not name.startswith("headway"):
            figures[f"ratio_vs_{name}"] = ratio(ours, peer, "one", "texts_per_second")
            figures[f"ratio_vs_{name}_batch32"] = ratio(ours, peer, "batch", "texts_per_second")
    kinds = ("one", "batch", "alone")
    return {
        **figures,
        "fraction_of_limit": ours and round(ours["batch"]["texts_per_second"] * flops / peak, 3),
        "peak_gflops": round(peak / 1e9),
        "failed": {name: sum(peer[kind]["failed"] for kind in kinds) for name, peer in results.items()},
        "cold_start_s": {name: peer["cold_start_s"] for name, peer in results.items()},
        "client_cores": ours and ours["one"]["client_cpu_share"],
        "cores_by_process": ours and ours["cpu"],
        **{name: {kind: peer[kind] for kind in kinds} for name, peer in results.items()},
    }


def ratio(ours: dict[str, Any] | None, theirs: dict[str, Any] | None, kind: str, figure: str) -> float | None:
    if ours is None or theirs is None:
        return None
    return round(ours[kind][figure] / theirs[kind][figure], 3)


def limit() -> float:
    """Additions and multiplications a second of a product of the model's size, in bf16 where that is fast."""
    script = (
        "import time, torch\n"
        "from headway.engine.hardware.device import compute_dtype\n"
        "dtype = compute_dtype('auto', torch.device('cpu'))\n"
        "a, b = torch.randn(2048, 1536).to(dtype), torch.randn(1536, 1536).to(dtype)\n"
        "best = 1e9\n"
        "for _ in range(40):\n"
        "    started = time.perf_counter(); a @ b; best = min(best, time.perf_counter() - started)\n"
        "print(2 * 2048 * 1536 * 1536 / best)\n"
    )
    return float(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)


def flops_a_text(texts: list[str], model: Path) -> float:
    """Of the products in the layers and in attention; nothing else is useful, padding least of all."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = np.asarray([len(encoding.ids) for encoding in tokenizer.encode_batch(texts)], float)
    config = json.loads((model / "config.json").read_text())
    width, layers = config["hidden_size"], config["num_hidden_layers"]
    weights = layers * (4 * width * width + 2 * width * config["intermediate_size"])
    return float(2 * weights * lengths.mean() + 4 * width * layers * (lengths**2).mean())


def sentences() -> list[str]:
    """Sentences of 20 to 600 characters out of the BBC's articles, shuffled."""
    documents = read_documents(SourceConfig(source="bbc-news"))
    found = [part.strip() for d in documents for part in re.split(r"(?<=[.!?])\s+", d.text)]
    chosen = [text for text in found if 20 < len(text) < 600]
    random.Random(0).shuffle(chosen)
    return chosen[:20_000]


def embed(peer: Peer, texts: list[str]) -> np.ndarray:
    """A server's vectors, (texts, hidden_size), of unit length."""
    rows = []
    for start in range(0, len(texts), 16):
        body = peer.body(texts[start : start + 16])
        rows += peer.vectors(
            httpx.post(peer.url, json=body, timeout=120, trust_env=False).raise_for_status().json()
        )
    vectors = np.asarray(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[float]:
    """A server in a process group of its own; gives the seconds to its first answer."""
    started = time.monotonic()
    log = (PEERS.parent / f"serve_speed_{peer.port}.log").open("w")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"} | peer.environment
    process = subprocess.Popen(
        peer.command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )
    try:
        while True:
            if process.poll() is not None or time.monotonic() - started > 180:
                raise ServerError(f"{peer.command[0]} did not come up: see {log.name}")
            with contextlib.suppress(httpx.HTTPError):
                embed(peer, ["Are you there?"])
                break
            time.sleep(0.1)
        yield time.monotonic() - started
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def cpu_by_deployment() -> dict[str, float]:
    """Processor seconds of Ray Serve's replicas by deployment: the gateway, and encoders by number."""
    seconds: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # While it computes, a long title has only its end: `ray::1-8000:Encoder.handle_request…`.
            if title := re.match(r"ray::.*:((?:Encoder|Gateway)\w*)", (folder / "cmdline").read_text()):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks = int(fields[11]) + int(fields[12])
                name = title[1]
                seconds[name] = seconds.get(name, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return seconds


if __name__ == "__main__":
    main()
