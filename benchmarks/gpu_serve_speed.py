"""Embeddings on a GPU: texts/s inside a replica, beside sentence-transformers, and over HTTP.

    python benchmarks/gpu_serve_speed.py                        # about a minute on an H200
    python benchmarks/gpu_serve_speed.py --device cpu --short   # every line of it, tiny

Random weights in the shapes of MiniLM (6 layers of 384) and BERT-base; texts of 80 tokens; bf16. A replica
computes packs as it is sent them, two at a time, with CUDA graphs and without; packs come tokenised, as they
do from the gateway. sentence-transformers encodes batches of 256, once from texts, as its user would, and
once from tensors on the device, the forward only. Needs torch and transformers; sentence-transformers and Ray
if they are there. What fails is a row of the table, not the end.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lib.embedding_peers import encode_speed, forward_speed
from lib.random_encoders import TEXT_TOKENS, random_texts, save_random_encoder
from transformers import BertConfig, BertModel

from headway.engine.hardware.peak_rate import matrix_product_rate
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer
from headway.serving.scheduling.compute_threads import ComputeThreads

EMBED = Operation("embed")
SHAPES = {
    "minilm": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
    "bert_base": {},
}
TINY: dict[str, int] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
        packs: tokens of each size of pack.
        seconds: that each row takes.
        texts: for sentence-transformers.
        requests: over HTTP, of 32 texts each.
    """

    packs: tuple[int, ...]
    seconds: float
    texts: int
    requests: int


FULL = Scale((2048, 16_384, 65_536), 2.0, 8192, 400)
SHORT = Scale((256, 1024), 0.1, 64, 4)


class Rows:
    """Prints a table row by row, and keeps its figures.

    Attributes:
        figures: by name.
    """

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}

    def add(
        self, label: str, name: str, work: Callable[[], float], unit: str = "texts/s", digits: int = 0
    ) -> None:
        """Measure and print; a peer, or a part of Headway, that does not run here says so."""
        try:
            found = work()
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            print(f"  {label:42} {type(error).__name__}: {reason[:80]}", flush=True)
            return
        self.figures[name] = round(found, max(digits, 1))
        print(f"  {label:42} {found:>12,.{digits}f} {unit}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--short", action="store_true", help="tiny models, a fraction of a second a row")
    arguments.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    options = arguments.parse_args()
    device, scale = torch.device(options.device), SHORT if options.short else FULL
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    rows, dtype = Rows(), torch.bfloat16 if device.type == "cuda" else torch.float32
    rows.figures |= {"device": name, "torch": torch.__version__}
    print(f"{name}, torch {torch.__version__}; texts of {TEXT_TOKENS} tokens")
    peak = matrix_product_rate(dtype, device)
    rows.figures["peak_tflops"] = round(peak / 1e12, 2)
    with tempfile.TemporaryDirectory() as root:
        for model in options.models:
            config = BertConfig(**(TINY if options.short else SHAPES[model]))
            folder = save_random_encoder(Path(root) / model, config)
            print(f"\n{model}: at most {peak / flops_a_text(config):,.0f} texts/s, by the products alone")
            measure(rows, model, folder, device, scale)
            rows.figures |= ratios(rows.figures, model, scale.packs, peak / flops_a_text(config))
    print(json.dumps(rows.figures))


def measure(rows: Rows, model: str, folder: Path, device: torch.device, scale: Scale) -> None:
    """All rows of one model."""
    encoder = EncoderModel(folder, "bf16" if device.type == "cuda" else "fp32", device)
    cosine = partial(least_cosine, encoder, folder)
    rows.add("cosine to transformers in fp32, the least", f"least_cosine_{model}", cosine, "", 5)
    for tokens in scale.packs:
        work = partial(replica, encoder, folder, tokens, scale.seconds)
        rows.add(f"replica, packs of {tokens:,}, no graphs", f"without_graphs_{model}_{tokens}", work)
    rows.add("recording graphs", f"record_seconds_{model}", partial(seconds_to_record, encoder), "s", 2)
    rows.add("cosine with graphs, the least", f"least_cosine_graphs_{model}", cosine, "", 5)
    for tokens in scale.packs:
        work = partial(replica, encoder, folder, tokens, scale.seconds)
        rows.add(f"replica, packs of {tokens:,}", f"texts_per_second_{model}_{tokens}", work)
    rows.add("one text alone", f"alone_ms_{model}", partial(alone_ms, encoder, folder), "ms", 2)
    peer = f"sentence_transformers_{model}"
    rows.add("sentence-transformers, from texts", peer, partial(encode_speed, folder, device, scale.texts))
    forward = partial(forward_speed, folder, device, scale.seconds)
    rows.add("sentence-transformers, forward only", f"{peer}_forward", forward)
    rows.add("Headway over HTTP, 32 texts a request", f"http_{model}", partial(over_http, folder, scale))


def ratios(figures: dict[str, Any], model: str, packs: Sequence[int], limit: float) -> dict[str, float]:
    """A replica over sentence-transformers, both ways of it, and over what products alone allow."""
    found, peer = {}, f"sentence_transformers_{model}"
    for tokens in packs:
        ours = figures.get(f"texts_per_second_{model}_{tokens}", 0.0)
        found[f"fraction_of_limit_{model}_{tokens}"] = round(ours / limit, 3)
        for name, theirs in (("", figures.get(peer)), ("_forward", figures.get(f"{peer}_forward"))):
            if theirs:
                found[f"ratio{name}_{model}_{tokens}"] = round(ours / theirs, 2)
    return found


def flops_a_text(config: BertConfig) -> float:
    """Of the products in the layers and in attention."""
    width = config.hidden_size
    weights = 4 * width * width + 2 * width * config.intermediate_size
    of_a_token = 2 * weights + 4 * width * TEXT_TOKENS
    return float(config.num_hidden_layers * of_a_token * TEXT_TOKENS)


def packs_of(folder: Path, tokens: int, count: int = 8) -> list[Pack]:
    """Different packs of as many whole texts as so many tokens hold."""
    size = max(1, tokens // TEXT_TOKENS)
    tokenizer = TextTokenizer(folder, 512)
    return [
        Pack.of([piece.sequence for piece in tokenizer.pieces(random_texts(size, seed))])
        for seed in range(count)
    ]


def replica(encoder: EncoderModel, folder: Path, tokens: int, seconds: float) -> float:
    """Texts/s of packs of one size, by a replica's threads: one pack is computed while one lies ready."""
    packs, threads = packs_of(folder, tokens), ComputeThreads(torch.get_num_threads())
    done = 0

    async def send(end: float) -> None:
        nonlocal done
        while time.perf_counter() < end:
            pack = packs[done % len(packs)]
            done += 1
            await threads.run(encoder, EMBED, pack)

    async def send_two_at_a_time(seconds: float) -> None:
        end = time.perf_counter() + seconds
        await asyncio.gather(send(end), send(end))

    asyncio.run(send_two_at_a_time(seconds / 4))
    done, started = 0, time.perf_counter()
    asyncio.run(send_two_at_a_time(seconds))
    return done * len(packs[0].lengths) / (time.perf_counter() - started)


def seconds_to_record(encoder: EncoderModel) -> float:
    started = time.perf_counter()
    encoder.record_graphs()
    return time.perf_counter() - started


def alone_ms(encoder: EncoderModel, folder: Path) -> float:
    """Median milliseconds of a pack of one text, with nothing beside it."""
    pack, spent = packs_of(folder, 1, 1)[0], []
    for _ in range(50):
        started = time.perf_counter()
        encoder.run(EMBED, pack)
        spent.append(time.perf_counter() - started)
    return sorted(spent)[len(spent) // 2] * 1000


def least_cosine(encoder: EncoderModel, folder: Path) -> float:
    """Of embeddings to those that transformers computes on the CPU, one text at a time."""
    pack = packs_of(folder, TEXT_TOKENS * 7, 1)[0]
    found = encoder.run(EMBED, pack)
    model = BertModel.from_pretrained(folder).eval()
    cosines = []
    for ids, ours in zip(np.split(pack.ids, np.cumsum(pack.lengths)[:-1]), found, strict=True):
        with torch.inference_mode():
            mean = model(torch.from_numpy(ids.astype(np.int64))[None]).last_hidden_state[0].mean(0).numpy()
        cosines.append(float(ours @ mean / np.linalg.norm(mean)))
    return min(cosines)


def over_http(folder: Path, scale: Scale) -> float:
    """Through Ray Serve and the gateway, from 32 clients in this process."""
    if importlib.util.find_spec("ray") is None:
        raise RuntimeError("Ray is not installed")
    import headway
    from headway.serving.load_test import apply_load, bodies

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    texts = random_texts(2048, 7)
    with tempfile.TemporaryDirectory() as runs:
        server = headway.serve(folder, port=port, replicas=1, runs=runs, quiet=True)
        try:
            for requests in (scale.requests // 4, scale.requests):
                load = apply_load(f"{server.url}/v1/embeddings", bodies(texts, requests, 32, None), 32)
                result = asyncio.run(load)
        finally:
            server.stop()
    if result.failed:
        raise RuntimeError(f"{result.failed} requests failed")
    return result.texts_per_second


if __name__ == "__main__":
    main()
