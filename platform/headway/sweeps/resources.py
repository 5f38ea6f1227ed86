"""What the trials of a sweep get of the cluster: how many run at once, in how many processes, with what."""

from __future__ import annotations

import math
import time
from typing import Any, NamedTuple, Protocol

from headway.cluster import connect
from headway.cluster.worker_group import (
    WorkerResources,
    fitting_processes,
    gpu_slots,
    worker_resources,
)
from headway.config.base import ConfigError
from headway.config.training import TrainingConfig

_SECONDS_BETWEEN_LOOKS = 10.0


class ResourceSettings(Protocol):
    """The settings of a step that runs trials, by which the cluster is divided; see `SweepConfig`."""

    @property
    def concurrency(self) -> int | None:
        """Trials at once."""
        ...

    @property
    def cpus_per_trial(self) -> int | None:
        """Cores for all workers of a trial together."""
        ...

    @property
    def gpus_per_trial(self) -> float | None:
        """GPUs for all workers of a trial together."""
        ...


class TrialResources(NamedTuple):
    """How a cluster is divided among trials.

    Attributes:
        concurrency: trials at once.
        workers: Ray Train workers of each trial; 0 if it trains in its own process.
        each: what each of a trial's processes gets.
        follows_cluster: whether there are to be more trials at once if the cluster grows.
    """

    concurrency: int
    workers: int
    each: WorkerResources
    follows_cluster: bool = False


def trial_resources(config: ResourceSettings, training: TrainingConfig, trials: int) -> TrialResources:
    """Resources of a sweep's trials; what the settings leave open is divided evenly.

    Args:
        config: of the sweep.
        training: what every trial trains with.
        trials: of the whole sweep.

    Raises:
        ConfigError: a trial asks for more than the cluster has, or for less than its workers need.
    """
    assert isinstance(training.workers, int)
    processes = max(1, training.workers)
    _check(config, processes)
    gpus = connect.available_gpus()
    gpus_of_each = None if config.gpus_per_trial is None else config.gpus_per_trial / processes
    concurrency = config.concurrency
    if concurrency is None:
        concurrency = connect.available_cpus() // (config.cpus_per_trial or processes)
        if gpus and gpus_of_each != 0:
            concurrency = min(concurrency, gpu_slots(gpus, gpus_of_each or 1.0) // processes)
    concurrency = max(1, min(concurrency, trials))
    at_once = concurrency * processes
    if gpus_of_each is None:
        # One GPU for each process; an equal fraction if there are fewer GPUs than processes.
        gpus_of_each = 1.0 / math.ceil(at_once / gpus) if gpus else 0.0
    if 0 < gpus_of_each < 1 and training.parallel.splits_model:
        raise ConfigError(f"gpus_per_trial: a model split over {processes} workers needs a GPU for each")
    each = worker_resources(at_once, gpus_of_each)
    if config.cpus_per_trial is not None:
        each = WorkerResources(config.cpus_per_trial // processes, each.gpus, each.is_local)
    follows_cluster = config.concurrency is None and not each.is_local
    return TrialResources(concurrency, training.workers, each, follows_cluster)


def follow_cluster(limiter: Any, resources: TrialResources) -> Any:
    """A callback of Ray Tune that lets more trials run at once while a cluster has more nodes than at first.

    Args:
        limiter: Ray Tune's, of how many trials there may be at once; never fewer than when the sweep began.
        resources: of the trials, which do not change.
    """
    from ray import tune

    class Growth(tune.Callback):
        _looked = time.monotonic()

        def __reduce__(self) -> Any:
            return tune.Callback, ()

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            now = time.monotonic()
            if now - self._looked > _SECONDS_BETWEEN_LOOKS:
                self._looked = now
                fitting = fitting_processes(resources.each) // max(1, resources.workers)
                limiter.max_concurrent = max(resources.concurrency, fitting)

    return Growth()


def _check(config: ResourceSettings, processes: int) -> None:
    """Refuse a trial that could never start: it would wait forever."""
    cores, gpus = connect.available_cpus(), connect.available_gpus()
    cpus_wanted, gpus_wanted = config.cpus_per_trial or processes, config.gpus_per_trial or 0.0
    if processes > cores:
        raise ConfigError(f"workers: {processes} a trial is more than the cluster has cores, {cores}")
    if cpus_wanted > cores:
        raise ConfigError(f"cpus_per_trial: {cpus_wanted} is more than the cluster has, {cores}")
    if cpus_wanted < processes:
        raise ConfigError(f"cpus_per_trial: {cpus_wanted} is less than one for each of {processes} workers")
    if gpus_wanted > gpus:
        raise ConfigError(f"gpus_per_trial: {gpus_wanted:g} is more than the cluster has, {gpus}")
    if gpus_wanted > processes:
        raise ConfigError(f"gpus_per_trial: {gpus_wanted:g} is more than one for each process, {processes}")
