"""A Ray cluster on hosts with networks of their own, launched and used as from a laptop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from lib.network_hosts import NetworkHosts

REPOSITORY = Path(__file__).resolve().parents[2]
# How soon a lost node is noticed, and restarted; half a minute each where not set.
NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10",
    "AUTOSCALER_UPDATE_INTERVAL_S": "2",
}
_SOURCE = "pretrain.corpus.source=texts"  # in the working folder, wherever that travels to
_PATIENCE_SECONDS = 240.0


def cluster_file(hosts: NetworkHosts) -> dict[str, Any]:
    """The repository's cluster.yaml for these hosts, one core each, with this Python instead of a new one."""
    head, *workers = hosts.addresses.values()
    settings = NOTICE | {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": "$HOME/headway/platform"}
    exports = " ".join(f"{name}={value}" for name, value in settings.items())
    file = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())
    file["cluster_name"] = f"headway-{os.getpid()}"
    file["provider"] |= {"head_ip": head, "worker_ips": workers}
    file["auth"] = {"ssh_user": "root", "ssh_private_key": str(hosts.key)}
    file["file_mounts"]["~/headway"] = str(REPOSITORY)
    file["initialization_commands"] = []  # the hosts share this machine's disk
    file["setup_commands"][0] = f"ln -sfn {sys.prefix} ~/headway/.venv; echo 'export {exports}' >> ~/.bashrc"
    memory = f"--object-store-memory={80 << 20}"
    file["head_start_ray_commands"][-1] += f" --node-ip-address={head} --dashboard-host={head} {memory}"
    file["worker_start_ray_commands"][-1] += f" --num-cpus=1 {memory}"
    return file


class Laptop:
    """The machine that launches and submits: this one, with a home of its own.

    Args:
        hosts: what it reaches over SSH.
        folder: its working folder, which travels with a job.
    """

    def __init__(self, hosts: NetworkHosts, folder: Path) -> None:
        self.folder = folder
        self._hosts = len(hosts.addresses)
        self._cluster = folder.parent / "cluster.yaml"
        home = folder.parent / "laptop"
        home.mkdir()
        head = hosts.addresses["head"]
        self._api = f"http://{head}:8265"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environment = os.environ | {
            "HOME": str(home),
            "PATH": path,
            "RAY_API_SERVER_ADDRESS": self._api,
        }
        self._call("ray", "get-auth-token", "--generate")
        self._environment["RAY_AUTH_MODE"] = "token"
        self._token = (home / ".ray" / "auth_token").read_text()
        self._cluster.write_text(yaml.safe_dump(cluster_file(hosts), sort_keys=False))

    def up(self) -> None:
        """`headway up`, and wait until both workers have joined."""
        self._call("headway", "up", str(self._cluster))
        wait_for(lambda: len(self.alive()) == self._hosts, "all hosts to join")

    def down(self) -> None:
        """`headway down`."""
        self._call("headway", "down", str(self._cluster))

    def submit(self, runs: Path) -> str:
        """`headway submit`; a head that has just started takes a while before it takes jobs.

        Returns:
            The job's name.
        """
        answers: list[str] = []

        def is_taken() -> bool:
            done = self._run("headway", "submit", "pipeline.json", "--runs", str(runs), "--set", _SOURCE)
            answers.append(done.stdout.strip())
            if done.returncode and "No available agent" not in done.stderr:
                raise SystemExit(f"headway submit failed:\n{done.stdout}{done.stderr}")
            return done.returncode == 0

        wait_for(is_taken, "the head to take a job")
        return answers[-1]

    def finish(self, job: str) -> None:
        """Wait, by `headway status`, until a job has succeeded."""
        states: list[str] = []

        def has_ended() -> bool:
            states.append(self._call("headway", "status", job).strip())
            return states[-1] in ("SUCCEEDED", "FAILED", "STOPPED")

        wait_for(has_ended, "the job to end", poll=2.0)
        if states[-1] != "SUCCEEDED":
            raise SystemExit(f"the job has {states[-1]}:\n{self._call('headway', 'logs', job)}")

    def waiter(self, job: str) -> Callable[[Callable[[], bool], str], None]:
        """`wait_for`, with what the job wrote where that takes too long."""

        def wait(condition: Callable[[], bool], what: str) -> None:
            try:
                wait_for(condition, what, poll=0.05)
            except SystemExit as error:
                logs = self._call("headway", "logs", job)
                raise SystemExit(f"{error}; the job wrote:\n{logs[-4000:]}") from None

        return wait

    def alive(self) -> set[str]:
        """Addresses of the nodes that the head takes to be alive."""
        request = urllib.request.Request(f"{self._api}/api/v0/nodes")
        request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        if command[0] == "headway":
            command = (sys.executable, "-m", "headway.cli.main", *command[1:])
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=600
        )

    def _call(self, *command: str) -> str:
        done = self._run(*command)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
        return done.stdout


def wait_for(condition: Callable[[], bool], what: str, poll: float = 0.5) -> None:
    """Return once `condition` holds; ends the drill if that takes too long."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {_PATIENCE_SECONDS:.0f} s for {what}")
        time.sleep(poll)
