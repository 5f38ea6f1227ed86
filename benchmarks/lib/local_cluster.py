"""A cluster of several nodes on this machine, and a pipeline driven on it, to be killed and resized."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# How soon the head notices that a node is gone; up to half a minute where not set.
os.environ.setdefault("RAY_health_check_initial_delay_ms", "1000")
os.environ.setdefault("RAY_health_check_period_ms", "500")
os.environ.setdefault("RAY_health_check_failure_threshold", "4")
os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")

from ray.cluster_utils import Cluster

from lib.run_record import NAME, RunRecord

_PATIENCE_SECONDS = 180.0


def write_pipeline(folder: Path, settings: dict[str, Any]) -> Path:
    """A pipeline over made-up text of few rows, so that a short run has many epochs."""
    rng = random.Random(1)
    words = ["boat", "mast", "rose", "hedge", "soup", "bread", "old", "small", "sailor", "cooks", "paints"]
    (folder / "texts").mkdir()
    for number in range(40):
        sentences = [" ".join(rng.choices(words, k=8)).capitalize() + "." for _ in range(24)]
        (folder / "texts" / f"{number}.txt").write_text(" ".join(sentences))
    corpus = {"source": str(folder / "texts"), "vocab_size": 120, "max_length": 64}
    step = {"use": "pretrain", "corpus": corpus, "model": {"preset": "bert-mini"}, "log_rows": True}
    path = folder / "pipeline.json"
    path.write_text(json.dumps({"name": NAME, "steps": {"pretrain": step | settings}}))
    return path


class LocalCluster:
    """A head without cores and worker nodes of one core each, all on this machine."""

    def __init__(self, workers: int) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 << 20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self._add() for _ in range(workers)]

    @property
    def address(self) -> str:
        """What a driver joins."""
        return self.cluster.address

    def add_node(self) -> None:
        """Add a worker node."""
        self.nodes.append(self._add())

    def _add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20)

    def close(self) -> None:
        """Take it down."""
        self.cluster.shutdown()

    def training_workers(self, node: Any) -> list[int]:
        """Process ids of Ray Train's workers on a node."""
        return [pid for pid in children(raylet(node)) if "RayTrainWorker" in command(pid)]

    def kill_worker(self, rng: random.Random) -> None:
        """SIGKILL one of the training workers."""
        running = [pid for node in self.nodes for pid in self.training_workers(node)]
        os.kill(rng.choice(running), signal.SIGKILL)

    def replace_node(self, rng: random.Random) -> None:
        """SIGKILL every process of a node that trains, then add another one."""
        self.kill_node(rng)
        self.add_node()

    def drain_node(self, rng: random.Random) -> None:
        """Give notice that a node which trains will be taken away in a minute, and add another one."""
        node = rng.choice([node for node in self.nodes if self.training_workers(node)])
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", node.node_id, "--deadline-remaining-seconds", "60"]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "drill"]
        subprocess.run(command, check=True, capture_output=True)
        self.nodes.remove(node)
        self.add_node()

    def kill_node(self, rng: random.Random) -> None:
        """SIGKILL every process of a node that trains."""
        node = rng.choice([node for node in self.nodes if self.training_workers(node)])
        for pid in [raylet(node), *children(raylet(node))]:
            os.kill(pid, signal.SIGKILL)
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def raylet(node: Any) -> int:
    """Process id of a node's raylet, the parent of all its workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def command(pid: int) -> str:
    """A process's command line; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


class Drive(RunRecord):
    """`headway run` on the cluster, in a process that may be killed and started again."""

    def __init__(self, pipeline: Path, runs: Path, address: str) -> None:
        super().__init__(runs)
        self._command = [sys.executable, "-m", "headway.cli.main", "run", str(pipeline), "--runs", str(runs)]
        self._command += ["--address", address]
        self._log = (runs.parent / f"{runs.name}.log").open("w")
        self.start()

    def start(self) -> None:
        """Start the driver, or start it again."""
        environment = os.environ | {"HEADWAY_DEBUG": "1"}
        self.process = subprocess.Popen(self._command, env=environment, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        """SIGKILL the driver, and start it again."""
        self.process.kill()
        self.process.wait()
        self.start()

    def close(self) -> None:
        """Leave no driver behind."""
        self.process.kill()
        self.process.wait()

    @property
    def folder(self) -> Path:
        """Of the pretraining step; waits until it is there."""
        wait_until(lambda: bool(self.folders()), self)
        return super().folder

    def finish(self) -> None:
        """Wait for the end of the run."""
        if self.process.wait(timeout=1800) != 0:
            raise SystemExit(f"the run failed:\n{Path(self._log.name).read_text()[-4000:]}")


def wait_until(condition: Callable[[], bool], drive: Drive, poll: float = 0.02) -> None:
    """Return once `condition` holds; ends the benchmark if the driver fails or nothing happens."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if drive.process.poll() not in (None, 0) or time.monotonic() > deadline:
            log = Path(drive._log.name).read_text()[-4000:]
            raise SystemExit(f"the run is stuck, driver exit code {drive.process.poll()}:\n{log}")
        time.sleep(poll)
