"""Everything that can go wrong while clients ask: replicas die, versions change, replicas come and go.

    python benchmarks/serve_drill.py                    # 10,000 requests to each of three architectures
    python benchmarks/serve_drill.py --requests 600 --moves 2 --kills 3 --architectures bert

Classes of texts are asked for, and attention weights beside them. From the beginning one replica that runs is
killed (SIGKILL) every 3 seconds, while the alias of the model moves between two versions and the deployment
grows from 1 replica to 4; under light load it shrinks to 1 again. Then the alias moves to a version whose
loading kills the process, a text is sent whose computation does, and the gateway is killed. Every answer is
compared with what transformers computes for the text with the version that it names.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from lib.drill_faults import APPLICATION, DEADLY_VERSION, Killer, Mortal, kill_gateway, processes
from lib.drill_models import ARCHITECTURES, LOOKED_AT, POISON, TEXTS, Answers, Expected, make_classifier
from lib.ports import free_port

from headway.cluster import connect
from headway.config.serve import ServeConfig
from headway.serving.deploy import deploy, follow_aliases, undeploy
from headway.serving.load_test import LoadResult, apply_load, bodies
from headway.serving.scheduling import replica
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking

CLIENTS = 40
LOOKING_CLIENTS = 4
"""Clients that ask for attention weights, a tenth of all requests."""
REPLICAS = 4
KILL_EVERY_S = 3.0
MOVE_EVERY_S = 6.0
PATIENCE_S = 300.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--moves", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES, choices=ARCHITECTURES)
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    # If others fill the machine's memory, Ray would kill the gateway and its own controller.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    replica.Encoder = Mortal  # type: ignore[misc]
    figures = {}
    for architecture in options.architectures:
        with tempfile.TemporaryDirectory() as folder:
            drill = Drill(Path(folder), architecture)
            figures[architecture] = drill.run(options.requests, options.moves, options.kills)
        print(architecture, json.dumps(figures[architecture]), flush=True)
    print(json.dumps(figures))


class Drill:
    """A server of one architecture, and what is done to it."""

    def __init__(self, root: Path, architecture: str) -> None:
        self.tracking = Tracking.at(root / "runs")
        expected = {}
        for version in ("1", "2", DEADLY_VERSION):
            path = make_classifier(root / version, architecture, seed=int(version))
            expected[version] = Expected(path)
            with self.tracking.run("drill", "train") as run:
                self.tracking.register_model(run, path, "drill", "new", TEXTS[0], "label")
        self.answers = Answers(expected)
        self.total = LoadResult()
        self.url = ""

    def run(self, requests: int, moves: int, kills: int) -> dict[str, Any]:
        """Run the whole drill; returns its figures."""
        self._move_alias("1")
        connect.connect(None, self.tracking.uri)
        started = time.monotonic()
        try:
            self.url = self._serve()
            figures = self._under_fire(requests, moves, kills)
            figures["replicas_at_the_end"] = self._until(lambda: len(processes("Encoder")) == 1)
            figures |= self._bad_version() | self._poison() | self._lost_gateway()
        finally:
            undeploy()
            connect.disconnect()
        return {
            "requests": self.total.statuses.total(),
            "failed": self.total.failed,
            "wrong": self.answers.wrong,
            "mixed_versions": self.answers.mixed,
            **figures,
            "answers_by_version": self.answers.by_version,
            "answers_by_operation": self.answers.by_operation,
            "statuses": dict(self.total.statuses),
            "p50_s": round(self.total.quantile(0.5), 3),
            "p99_s": round(self.total.quantile(0.99), 3),
            "longest_s": round(max(self.total.latencies), 3),
            "seconds": round(time.monotonic() - started, 1),
        }

    def _serve(self) -> str:
        config = ServeConfig.model_validate(
            {
                "model": "models:/drill@champion",
                "application": APPLICATION,
                "port": free_port(),
                "replicas": [1, REPLICAS],
                "precision": "fp32",
                "watch_interval_s": 0.5,
                "request_timeout_s": 110.0,
                "max_batch_tokens": 512,
                "target_queued_tokens": 600,
                "downscale_delay_s": 5.0,
            }
        )
        name, version = self.tracking.registered_version("models:/drill@champion")
        folder = self.tracking.download_weights("models:/drill@champion")
        url = deploy(config, [Release(name, version, str(folder))], 1)
        follow_aliases(config, self.tracking)
        return url

    def _under_fire(self, requests: int, moves: int, kills: int) -> dict[str, Any]:
        """Load while replicas die and the alias moves, until there was enough of everything."""
        killer, moved = Killer(KILL_EVERY_S), []

        def move_alias() -> None:
            for number in range(moves):
                time.sleep(MOVE_EVERY_S)
                self._move_alias("2" if number % 2 == 0 else "1")
                moved.append(number)

        threading.Thread(target=move_alias, daemon=True).start()
        killer.start()
        while self.total.statuses.total() < requests or len(moved) < moves or killer.killed < kills:
            self._ask(requests // 10, CLIENTS, LOOKING_CLIENTS)
        killer.stopped.set()
        killer.join()
        most = killer.most
        deadline = time.monotonic() + PATIENCE_S
        while most < REPLICAS and time.monotonic() < deadline:  # if they were killed faster than they start
            self._ask(requests // 10, CLIENTS, LOOKING_CLIENTS)
            most = max(most, len(processes("Encoder")))
        return {"killed": killer.killed, "alias_moves": len(moved), "most_replicas": most}

    def _bad_version(self) -> dict[str, Any]:
        """Move the alias to a version that kills its process: it is refused, and the other one answers."""
        before = self._model()["version"]
        self._move_alias(DEADLY_VERSION)
        self._until(lambda: DEADLY_VERSION in self._model()["refused"])
        served = self._model()
        return {"refused": served["refused"], "answers_after_it": served["version"] == before}

    def _poison(self) -> dict[str, Any]:
        """Send a text that kills its replica: it is answered with an error of the server, and soon."""
        body = {"input": [POISON]}
        answer = httpx.post(f"{self.url}/v1/classify", json=body, timeout=PATIENCE_S, trust_env=False)
        self._ask(20, 2, 1)
        return {"poison": [answer.status_code, answer.json()["error"]["type"]]}

    def _lost_gateway(self) -> dict[str, Any]:
        """Kill the gateway: the next one serves what it served, and refuses what it refused."""
        before, old = self._model(), kill_gateway()

        def is_back() -> bool:
            try:
                return processes("Gateway") not in ([], [old]) and bool(self._model())
            except httpx.TransportError:
                return False

        deadline = time.monotonic() + PATIENCE_S
        while not is_back() and time.monotonic() < deadline:
            time.sleep(0.5)
        after = self._model()
        self._ask(40, 4, 1)
        same = [after[name] == before[name] for name in ("version", "refused")]
        return {"gateway_came_back_the_same": all(same)}

    def _until(self, reached: Callable[[], bool]) -> int:
        """Few clients ask on until a condition holds; the replicas there are then."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached() and time.monotonic() < deadline:
            self._ask(4, 1, 1)
            time.sleep(0.5)
        return len(processes("Encoder"))

    def _ask(self, requests: int, clients: int, looking: int) -> None:
        """Ask for classes, and a tenth as often for attention weights, and look at all answers."""
        for part in asyncio.run(self._load(requests, clients, looking)):
            self.total.statuses.update(part.statuses)
            self.total.latencies += part.latencies

    async def _load(self, requests: int, clients: int, looking: int) -> tuple[LoadResult, LoadResult]:
        classes = bodies(TEXTS, requests, 4, None)
        url, answers = self.url, self.answers
        return await asyncio.gather(
            apply_load(f"{url}/v1/classify", classes, clients, check=answers.classes),
            apply_load(f"{url}/v1/attention", looks(max(1, requests // 10)), looking, check=answers.weights),
        )

    def _model(self) -> dict[str, Any]:
        answer = httpx.get(f"{self.url}/v1/models", timeout=30.0, trust_env=False)
        model: dict[str, Any] = answer.json()["data"][0]
        return model

    def _move_alias(self, version: str) -> None:
        self.tracking.client.set_registered_model_alias("drill", "champion", version)


def looks(requests: int) -> Iterator[tuple[Any, int]]:
    """Bodies for `/v1/attention`."""
    for text in itertools.islice(itertools.cycle(LOOKED_AT), requests):
        yield {"input": text, "tokens": 64}, 1


if __name__ == "__main__":
    main()
