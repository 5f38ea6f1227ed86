"""A cluster of hosts with networks of their own loses a cable and a machine; the run ends with the same bits.

    python benchmarks/cluster_drill.py                    # as root; about six minutes
    python benchmarks/cluster_drill.py --steps 90         # in about four

A head and two workers, each a network namespace with its own address, processes, home and sshd, on a bridge.
`headway up` has Ray's launcher start the cluster over SSH from a cluster.yaml of provider `local`;
`headway submit` sends a pretraining pipeline, twice. The first run is left alone. In the second one the link
of a worker is cut, and later every process of the other one is killed; the launcher on the head brings both
back. Weights, MLflow's metrics and the rows seen are compared.

Where namespaces are not permitted, the hosts are nodes of `ray.cluster_utils.Cluster`, and are killed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from lib import network_hosts
from lib.local_cluster import Drive, LocalCluster, wait_until, write_pipeline
from lib.network_cluster import Laptop, wait_for
from lib.network_hosts import NetworkHosts
from lib.run_record import RunRecord, compare

from headway.runs.journal import Entry

HOSTS = ["head", "worker-1", "worker-2"]
KILLED = "every process killed"
CUT = "link cut"
CHECKPOINT_EVERY = 10
SETTINGS = {
    "batch_size": 16,
    "log_every": 1,
    "evaluate_every": 25,
    "checkpoint_every": CHECKPOINT_EVERY,
    "workers": 2,
}


@dataclass(frozen=True)
class Fault:
    """What was done to a host, after which step, and what it cost."""

    what: str
    host: str
    step: int
    lost_steps: int
    recovery_seconds: float


class Log:
    """Lines with the seconds since the drill began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print a line."""
        print(f"{time.monotonic() - self._began:7.1f} s  {line}", flush=True)


Wait = Callable[[Callable[[], bool], str], None]


def next_trained(run: RunRecord, fault: Fault, hit_at: float, starts: int, wait: Wait) -> Fault:
    """The fault with what it cost, once a new group trains its first step."""
    step = fault.step
    first: list[Entry] = []

    def has_recovered() -> bool:
        nonlocal step
        if run.starts() == starts:
            step = run.step()  # what still runs may finish a step or two before it is stopped
            return False
        first[:] = [entry for entry in run.trained() if entry.time / 1000 > hit_at][:1]
        return bool(first)

    wait(has_recovered, "training to go on")
    lost = step - (first[0].step - 1)
    return replace(fault, step=step, lost_steps=lost, recovery_seconds=first[0].time / 1000 - hit_at)


def strike(
    run: RunRecord, what: str, host: str, hit: Callable[[], None], rng: random.Random, wait: Wait, log: Log
) -> Fault:
    """Let the run go on for a random while, hit a host, and wait for the next step that is trained."""
    goal = run.step() + rng.randint(2 * CHECKPOINT_EVERY, 4 * CHECKPOINT_EVERY)
    wait(lambda: run.step() >= goal, f"step {goal}")
    starts, hit_at = run.starts(), time.time()
    fault = Fault(what, host, run.step(), 0, 0.0)
    log(f"{host}: {what} after step {fault.step}")
    hit()
    fault = next_trained(run, fault, hit_at, starts, wait)
    log(f"training goes on, {fault.lost_steps} steps done again")
    return fault


def on_hosts(folder: Path, rng: random.Random, log: Log) -> tuple[list[Fault], RunRecord, RunRecord]:
    """The drill on three hosts: faults, the run that was struck, and the untouched one."""
    untouched, struck = RunRecord(folder / "untouched"), RunRecord(folder / "struck")
    with closing(NetworkHosts(HOSTS, folder / "hosts")) as hosts:
        log("hosts: " + ", ".join(f"{name} {address}" for name, address in hosts.addresses.items()))
        laptop = Laptop(hosts, folder / "project")
        laptop.up()
        log("headway up: the head and both workers have joined over SSH")
        laptop.finish(laptop.submit(untouched.runs))
        log(f"untouched run done, {untouched.step()} steps")
        job = laptop.submit(struck.runs)
        faults = [
            strike(struck, CUT, "worker-1", lambda: cut(hosts, laptop, log), rng, laptop.waiter(job), log),
            strike(
                struck, KILLED, "worker-2", lambda: kill(hosts, laptop, log), rng, laptop.waiter(job), log
            ),
        ]
        laptop.finish(job)
        log(f"the job that was struck twice has succeeded, {struck.step()} steps")
        laptop.down()
        log("headway down")
    return faults, struck, untouched


def cut(hosts: NetworkHosts, laptop: Laptop, log: Log) -> None:
    """Pull worker-1's cable until the head has given it up, and wait for its return."""
    address = hosts.addresses["worker-1"]
    hosts.cut("worker-1")
    wait_for(lambda: address not in laptop.alive(), "the head to miss worker-1")
    log("worker-1: the head has given it up; its link is joined again")
    hosts.join("worker-1")
    wait_for(lambda: address in laptop.alive(), "worker-1's return")
    log("worker-1: back, its Ray started again by the launcher on the head")


def kill(hosts: NetworkHosts, laptop: Laptop, log: Log) -> None:
    """Kill all that runs on worker-2, and wait for its return."""
    address = hosts.addresses["worker-2"]
    log(f"worker-2: {hosts.kill('worker-2')} processes got SIGKILL")
    wait_for(lambda: address not in laptop.alive(), "the head to miss worker-2")
    log("worker-2: the head has given it up")
    wait_for(lambda: address in laptop.alive(), "worker-2's return")
    log("worker-2: back, its Ray started again by the launcher on the head")


def on_local_cluster(folder: Path, rng: random.Random, log: Log) -> tuple[list[Fault], RunRecord, RunRecord]:
    """The drill on nodes that share this machine's network: both are killed and replaced."""
    pipeline = folder / "project" / "pipeline.json"
    with closing(LocalCluster(workers=2)) as cluster:
        with closing(Drive(pipeline, folder / "untouched", cluster.address)) as untouched:
            untouched.finish()
        log("untouched run done")
        with closing(Drive(pipeline, folder / "struck", cluster.address)) as struck:

            def wait(condition: Callable[[], bool], what: str) -> None:
                wait_until(condition, struck)

            faults = [
                strike(struck, KILLED, f"node {number}", lambda: cluster.replace_node(rng), rng, wait, log)
                for number in (1, 2)
            ]
            struck.finish()
        log("the run that was struck twice is done")
    return faults, struck, untouched


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--local", action="store_true", help="As where namespaces are not permitted.")
    options = parser.parse_args()
    log, rng = Log(), random.Random(options.seed)
    problem = "--local" if options.local else network_hosts.problem()
    if problem:
        log(f"no hosts with networks of their own ({problem}); nodes of ray.cluster_utils.Cluster instead")
    with tempfile.TemporaryDirectory(prefix="headway-cluster-") as name:
        folder = Path(name)
        (folder / "project").mkdir()
        write_pipeline(folder / "project", SETTINGS | {"steps": options.steps})
        drill = on_local_cluster if problem else on_hosts
        faults, struck, untouched = drill(folder, rng, log)
        result = compare(struck, untouched, options.steps)
    report(faults, result, "nodes of one machine" if problem else "network namespaces")
    sys.exit(0 if all(result.values()) else 1)


def report(faults: list[Fault], result: dict[str, bool], hosts: str) -> None:
    """Print the table and the line of JSON."""
    print(f"\n{'host':<10}{'what':<24}{'after step':>10}{'done again':>12}{'next step after':>17}")
    for fault in faults:
        print(f"{fault.host:<10}{fault.what:<24}{fault.step:>10}{fault.lost_steps:>12}", end="")
        print(f"{fault.recovery_seconds:>15.1f} s")
    print()
    print(
        json.dumps(
            {
                "hosts": hosts,
                "faults": [f"{fault.host}: {fault.what}" for fault in faults],
                **result,
                "max_lost_steps": max(fault.lost_steps for fault in faults),
                "max_recovery_seconds": round(max(fault.recovery_seconds for fault in faults), 1),
            }
        )
    )


if __name__ == "__main__":
    main()
