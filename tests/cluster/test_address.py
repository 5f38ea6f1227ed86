"""A cluster that asks for a token is joined by its address, and what it refuses is said in one line."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headway.cluster.address import address_problem
from ports import deaf_port, free_port
from waiting import PATIENCE, wait_until

ADDRESS, OPEN_ADDRESS = (f"127.0.0.1:{free_port()}" for _ in range(2))
TRACKING = "http://tracking.example:5000"
TOKEN, OTHER_TOKEN = "a" * 64, "b" * 64

JOIN = """
import json, os, sys
from pathlib import Path
from headway.cluster import connect, worker_group
from headway.config.base import ConfigError

def environment(*_):
    return os.environ.get("MLFLOW_TRACKING_URI")

def write(folder, worker, launched_at):
    (Path(folder) / "worker").write_text(str(environment()))

folder = sys.argv[1]
try:
    connect.connect(None, os.environ["MLFLOW_TRACKING_URI"])
except ConfigError as error:
    sys.exit(str(error))
if "--train" in sys.argv:
    worker_group.train_on_workers(write, (folder,), 1, Path(folder), lambda: 0)
    sys.exit(print((Path(folder) / "worker").read_text()))

import ray
from ray import tune

trial = lambda config: tune.report({"uri": environment()})
config = tune.RunConfig(storage_path=folder, verbose=0)
[result] = tune.Tuner(trial, run_config=config).fit()
print(json.dumps({
    "address": ray.get_runtime_context().gcs_address,
    "task": connect.map_on_cluster(environment, [()], 1)[0],
    "trial": result.metrics["uri"],
}))
"""


def join(token: str, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a process prints that joins by RAY_ADDRESS, with a home folder where this token lies."""
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(token)
    own = {"HOME": str(folder), "RAY_ADDRESS": ADDRESS, "MLFLOW_TRACKING_URI": TRACKING} | environment
    command = [sys.executable, "-c", JOIN, str(folder), *options]
    # Where this process started a Ray of its own, Ray has set the mode for all that it starts.
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    return subprocess.run(command, env=inherited | own, capture_output=True, text=True, timeout=PATIENCE)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@contextmanager
def running_cluster(address: str, **authentication: str) -> Iterator[str]:
    """The address of a cluster of two cores, which asks for a token or for none."""
    ports = ["--port", address.rpartition(":")[2], "--node-ip-address", "127.0.0.1"]
    command = ["ray", "start", "--head", "--block", "--include-dashboard=false", "--num-cpus=2", *ports]
    environment = os.environ | authentication
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_until(lambda: listens(address))
    yield address
    os.killpg(head.pid, signal.SIGKILL)  # it would take half a minute to say good-bye
    head.wait(timeout=PATIENCE)


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[str]:
    """The address of a cluster that asks for `TOKEN`."""
    with running_cluster(ADDRESS, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as address:
        yield address


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[str]:
    """The address of a cluster that asks for no token."""
    with running_cluster(OPEN_ADDRESS, RAY_AUTH_MODE="disabled") as address:
        yield address


def test_a_cluster_is_joined_by_its_address_and_tasks_and_trials_know_the_tracking_server(
    guarded_cluster, tmp_path
):
    done = join(TOKEN, tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert facts.pop("address").endswith(ADDRESS.removeprefix("127.0.0.1"))
    assert facts == {"task": TRACKING, "trial": TRACKING}


def test_a_cluster_that_asks_for_no_token_trains_though_one_lies_here(open_cluster, tmp_path):
    done = join(TOKEN, tmp_path, "--train", RAY_ADDRESS=open_cluster)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == TRACKING


@pytest.mark.parametrize(
    ("token", "mode", "reason"),
    [
        (OTHER_TOKEN, None, "it requires another token than this machine sends; set RAY_AUTH_TOKEN"),
        (TOKEN, "disabled", "it requires a token, but RAY_AUTH_MODE says to send none; unset it"),
    ],
)
def test_a_cluster_that_refuses_the_token_is_named_in_one_line(
    guarded_cluster, tmp_path, token, mode, reason
):
    done = join(token, tmp_path, **({"RAY_AUTH_MODE": mode} if mode else {}))
    assert done.returncode == 1
    assert done.stderr.startswith(f"address: no Ray cluster to join at '{ADDRESS}': {reason}")
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_address_where_nothing_listens_is_a_problem_and_other_forms_are_left_to_ray():
    with deaf_port() as port:
        assert address_problem(f"127.0.0.1:{port}") == "Connection refused"
    assert address_problem("auto") is None
