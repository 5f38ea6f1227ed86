"""A replica: a Ray Serve actor that computes packs with one version of a model, or several in a roll-out."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING

import torch
from ray import serve

from headway.engine.hardware.device import is_gpu_lost, limit_gpu_memory
from headway.inference.packing import Operation, Pack
from headway.serving.autoscaling import UNANSWERED
from headway.serving.scheduling.compute_threads import ComputeThreads
from headway.serving.scheduling.messages import Release, Reply
from headway.serving.settings import ReplicaSettings

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

_log = logging.getLogger(__name__)

_IDLE_S = 2.0


class WrongAnswersError(Exception):
    """A version does not give the answers that are stored with it."""


class Encoder:
    """Computes in threads, so that the next pack is unpacked while one is computed."""

    def __init__(self, release: Release, settings: ReplicaSettings) -> None:
        """Load the first version.

        Raises:
            WrongAnswersError: it does not answer as it did when it was stored.
        """
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._settings, self._device = settings, _assigned_device()
        # Nodes may differ: the settings are made for the largest.
        self._threads = ComputeThreads(min(settings.threads, os.cpu_count() or 1))
        self._loading: asyncio.Lock | None = None
        self._models: dict[Release, EncoderModel] = {release: self._load(release)}
        self._unanswered_tokens, self._reported_at, self._packs = 0, 0.0, 0

    async def compute(
        self, release: Release, operation: Operation, pack: Pack, unanswered_tokens: int
    ) -> Reply:
        """Compute an operation on a pack, with exactly this version of the model.

        Args:
            release: the version; loaded first if this replica does not hold it yet.
            operation: what to compute.
            pack: the sequences.
            unanswered_tokens: tokens that wait or are being computed, these included, for the autoscaler.
        """
        self._unanswered_tokens = unanswered_tokens
        self._packs += 1
        try:
            model = await self._model(release)
            return Reply(self._replica, await self._threads.run(model, operation, pack))
        except RuntimeError as error:
            _end_if_lost(error)
            raise
        finally:
            self._packs -= 1
            self._unanswered_tokens = max(0, self._unanswered_tokens - len(pack.ids))
            self._reported_at = time.monotonic()

    async def prepare(self, release: Release) -> str | None:
        """Load a version beside the others, warm it up, and compare its outputs with the stored ones.

        Returns:
            What is wrong with it; None if nothing is.
        """
        try:
            await self._model(release)
        except WrongAnswersError as error:
            return str(error)
        except Exception as error:
            _end_if_lost(error)
            return f"it cannot be loaded: {error}"
        return None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's autoscaler gets: tokens without an answer; 0 if there was no pack for a while."""
        idle = not self._packs and time.monotonic() - self._reported_at > _IDLE_S
        return {UNANSWERED: 0.0 if idle else float(self._unanswered_tokens)}

    async def _model(self, release: Release) -> EncoderModel:
        self._loading = self._loading or asyncio.Lock()
        if release not in self._models:
            async with self._loading:
                if release not in self._models:
                    self._models[release] = await asyncio.to_thread(self._load, release)
                    while len(self._models) > self._settings.versions:
                        del self._models[next(iter(self._models))]
        # In the order of use: the first is the one to drop next.
        self._models[release] = self._models.pop(release)
        return self._models[release]

    def _load(self, release: Release) -> EncoderModel:
        from pathlib import Path

        from headway.inference.golden import disagreement, warm_up
        from headway.inference.model import EncoderModel

        model = EncoderModel(Path(release.folder), self._settings.precision, self._device)
        warm_up(model, release.folder)
        if self._settings.cuda_graphs:
            model.record_graphs()
        if problem := disagreement(model, release.folder):
            raise WrongAnswersError(problem)
        return model


def _end_if_lost(error: Exception) -> None:
    """End this process if its GPU can compute nothing more in it, as after most errors of CUDA.

    The gateway sends its packs to other replicas, and Ray Serve starts a new one at once. If the replica
    lived until three health checks had failed, it would fail packs faster than others compute them, and so
    get the next ones, until each had used up its attempts. It ends without cleaning up, since that calls CUDA
    and might wait for it.
    """
    if is_gpu_lost(error):
        _log.critical("the GPU is lost; this replica ends: %s", str(error).partition("\n")[0])
        os._exit(1)


def _assigned_device() -> torch.device:
    """The GPU that Ray assigned to this replica, or the CPU.

    Of the GPU's memory the replica takes no more than the fraction assigned to it. Ray hides other GPUs, but
    only from a process that has one.
    """
    import ray

    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    limit_gpu_memory(device, gpus)
    return device
