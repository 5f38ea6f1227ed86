"""Processes that are started ahead are those that Ray then takes."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psutil
import pytest
import ray
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.execution.class_cache import _ActorClassCache

from headway.cluster import prestart, ray_internals
from headway.cluster.fork_server import server
from waiting import wait_until


def idle() -> set[int]:
    """This cluster's processes that wait to be taken: Ray titles them so, and they do nothing."""
    before = _titled_idle()
    time.sleep(1.0)
    return {process for process, seconds in _titled_idle().items() if seconds - before.get(process, 0) < 0.05}


def _titled_idle() -> dict[int, float]:
    """Processes, and the seconds of a core that they have taken."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # ended by now
            forked = server.__file__ in psutil.Process(process.ppid()).cmdline()
            if forked and process.cmdline()[:1] == ["ray::IDLE"]:
                found[process.pid] = process.cpu_times().user
    return found


def idle_after_one_more(environment: dict[str, str] | None) -> set[int]:
    before = idle()
    prestart.start_processes(1, environment)
    wait_until(lambda: idle() - before)
    return idle()


def actor() -> Any:
    class Actor:
        def process(self) -> int:
            import os

            return os.getpid()

    return Actor


def plain() -> Any:
    return ray.remote(actor())


def of_tune() -> Any:
    return _ActorClassCache().get(actor())


@pytest.mark.parametrize(
    ("actor_class", "environment"), [(plain, lambda: None), (of_tune, ray_internals.trial_environment)]
)
def test_an_actor_takes_a_process_that_was_started_ahead(ray_cluster, actor_class, environment):
    waiting = idle_after_one_more(environment())
    started = actor_class().options(num_cpus=1).remote()
    assert ray.get(started.process.remote()) in waiting
    ray.kill(started)


def test_training_workers_take_processes_that_were_started_ahead(ray_cluster, tmp_path):
    environment = prestart.worker_environment(1)
    control = ray_internals.train_environment()
    assert control is not None
    waiting = idle_after_one_more(control | environment)

    def write(folder: str) -> None:
        import os
        from pathlib import Path

        (Path(folder) / "process").write_text(str(os.getpid()))

    run_config = ray.train.RunConfig(storage_path=str(tmp_path), worker_runtime_env={"env_vars": environment})
    scaling = ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1})
    TorchTrainer(write, train_loop_config=str(tmp_path), scaling_config=scaling, run_config=run_config).fit()
    assert int((tmp_path / "process").read_text()) in waiting


def test_replicas_take_processes_that_were_started_ahead(ray_cluster):
    from ray import serve

    waiting = idle_after_one_more({})
    serve.start(proxy_location="Disabled")
    handle = serve.run(serve.deployment(actor()).bind(), name="ahead", route_prefix=None)
    assert handle.process.remote().result() in waiting
    serve.shutdown()
