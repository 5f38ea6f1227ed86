"""Everything that can go wrong while clients ask: replicas die, versions change, replicas come and go.

    python benchmarks/serve_drill.py                    # 10,000 requests, about 2 minutes on 2 cores
    python benchmarks/serve_drill.py --requests 1500 --moves 2

Under heavy load the deployment grows from 1 replica to 4; then one that runs is killed (SIGKILL) every 3
seconds, while the alias of the model moves between two versions; under light load it shrinks to 1 again.
Every answer is compared with what transformers computes for the text with the version that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from headway.cluster import connect
from headway.config.serve import ServeConfig
from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.golden import store_golden
from headway.serving.deploy import deploy, follow_aliases, undeploy
from headway.serving.load_test import LoadResult, apply_load, bodies
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking

LABELS = ["kitchen", "harbour", "garden"]
CLIENTS = 48
REPLICAS = 4
LEAST_KILLS = 3
KILL_EVERY = 3.0
TEXTS = [
    f"{subject} {verb} the {quality} {thing} and then the {other} {when}, as nobody had expected."
    for subject in ("The sailor", "A baker", "The florist", "Captain Ahab", "My neighbour")
    for verb in ("steers", "slices", "waters", "hunts")
    for quality in ("old", "small", "white")
    for thing in ("boat", "bread", "rose", "whale")
    for other in ("ferry", "hedge")
    for when in ("before noon", "every morning")
]


class Answers:
    """Compares every answer with what the version that it names should say."""

    def __init__(self, expected: dict[str, dict[str, list[float]]]) -> None:
        self.expected = expected
        self.by_version: dict[str, int] = {}
        self.wrong = self.mixed = 0

    def __call__(self, body: Any, content: bytes) -> None:
        """Look at one answer."""
        answer = json.loads(content)
        self.by_version[answer["version"]] = self.by_version.get(answer["version"], 0) + 1
        good = [
            self._fits(version, body["input"], answer["data"])
            for version in (answer["version"], *(v for v in self.expected if v != answer["version"]))
        ]
        if not all(good[0]):
            self.wrong += 1
            self.mixed += all(any(row) for row in zip(*good, strict=True))

    def _fits(self, version: str, texts: list[str], rows: list[Any]) -> list[bool]:
        expected = self.expected[version]
        return [
            max(abs(p - q) for p, q in zip(row["scores"].values(), expected[text], strict=True)) < 1e-3
            for text, row in zip(texts, rows, strict=True)
        ]


class Killer(threading.Thread):
    """Once there are as many replicas as there may be, kills one every few seconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed, self.most, self.stopped = 0, 0, threading.Event()
        self.begins = time.monotonic() + 60.0

    def run(self) -> None:
        """Count and kill until stopped."""
        while not self.stopped.wait(1.0 if self.most < REPLICAS else KILL_EVERY):
            replicas = replica_processes()
            self.most = max(self.most, len(replicas))
            if replicas and (self.most == REPLICAS or time.monotonic() > self.begins):
                with contextlib.suppress(ProcessLookupError):  # Ray Serve may not know yet that it died
                    os.kill(random.choice(replicas), signal.SIGKILL)
                    self.killed += 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(drill(Path(folder), options.requests, options.moves)))


def drill(root: Path, requests: int, moves: int) -> dict[str, Any]:
    """Run the whole drill; returns its figures."""
    tracking = Tracking.at(root / "runs")
    expected = {}
    for version in ("1", "2"):
        path = make_classifier(root / version, seed=int(version))
        expected[version] = probabilities(path)
        with tracking.run("drill", "train") as run:
            tracking.register_model(run, path, "drill", "champion", TEXTS[0], "label")
    os.environ.setdefault("RAY_worker_niceness", "0")
    connect.connect(None, tracking.uri)
    config = ServeConfig.model_validate(
        {
            "model": "models:/drill@champion",
            "application": "headway",
            "port": free_port(),
            "replicas": [1, REPLICAS],
            "precision": "fp32",
            "watch_interval_s": 0.5,
            "request_timeout_s": 110.0,
            "max_batch_tokens": 512,
            "target_queued_tokens": 300,
            "downscale_delay_s": 5.0,
        }
    )
    name, version = tracking.registered_version("models:/drill@champion")
    folder = tracking.download_weights("models:/drill@champion")
    url = deploy(config, [Release(name, version, str(folder))], 1)
    follow_aliases(config, tracking)
    try:
        return under_fire(url, tracking, Answers(expected), requests, moves)
    finally:
        undeploy()
        connect.disconnect()


def under_fire(url: str, tracking: Tracking, answers: Answers, requests: int, moves: int) -> dict[str, Any]:
    """The load while replicas die and the alias moves; then one client, until one replica is left."""
    killer, moved = Killer(), []
    started = time.monotonic()

    def move_alias() -> None:
        for number in range(moves):
            time.sleep(6.0)
            tracking.client.set_registered_model_alias("drill", "champion", 1 + number % 2)
            moved.append(number)

    mover = threading.Thread(target=move_alias, daemon=True)
    killer.start()
    mover.start()
    heavy = LoadResult()
    while heavy.statuses.total() < requests or len(moved) < moves or killer.killed < LEAST_KILLS:
        part = asyncio.run(
            apply_load(f"{url}/v1/classify", bodies(TEXTS, requests // 10, 4, None), CLIENTS, check=answers)
        )
        heavy.statuses.update(part.statuses)
        heavy.latencies += part.latencies
        heavy.seconds += part.seconds
    killer.stopped.set()
    killer.join()
    light, left = until(lambda: len(replica_processes()) == 1, url, answers)
    statuses = heavy.statuses + light.statuses
    return {
        "requests": statuses.total(),
        "failed": heavy.failed + light.failed,
        "mixed_versions": answers.mixed,
        "wrong": answers.wrong,
        "killed": killer.killed,
        "alias_moves": len(moved),
        "answers_by_version": answers.by_version,
        "most_replicas": killer.most,
        "replicas_at_the_end": left,
        "p50_s": round(heavy.quantile(0.5), 3),
        "p99_s": round(heavy.quantile(0.99), 3),
        "longest_s": round(max(heavy.latencies), 3),
        "seconds": round(time.monotonic() - started, 1),
    }


def until(reached: Callable[[], bool], url: str, answers: Answers) -> tuple[LoadResult, int]:
    """One client asks on until the condition holds, for 90 s at most; the replicas there are then."""
    total, deadline = LoadResult(), time.monotonic() + 90
    while not reached() and time.monotonic() < deadline:
        part = asyncio.run(
            apply_load(f"{url}/v1/classify", bodies(TEXTS, 5, 1, None), 1, check=_listed(answers))
        )
        total.statuses.update(part.statuses)
        time.sleep(0.5)
    return total, len(replica_processes())


def _listed(answers: Answers) -> Callable[[Any, bytes], None]:
    return lambda body, content: answers({"input": [body["input"]]}, content)


def make_classifier(folder: Path, seed: int) -> Path:
    """A small classifier with random weights, and its stored answers."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=400, lowercase=True, max_length=64)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=64,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    store_golden(folder, TEXTS[:8])
    return folder


def probabilities(folder: Path) -> dict[str, list[float]]:
    """What transformers computes, padded, by text."""
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return dict(zip(TEXTS, model(**batch).logits.softmax(-1).tolist(), strict=True))


def replica_processes() -> list[int]:
    """The process ids of the replicas that run; those that still start are left in peace."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    replicas = details["applications"]["headway"]["deployments"]["Encoder"]["replicas"]
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING" and replica["pid"]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
