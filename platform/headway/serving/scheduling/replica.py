"""A replica: a Ray Serve actor that computes packs, of one version of a model or, during a swap, of two."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import torch
from ray import serve

from headway.engine.hardware.device import is_gpu_lost, limit_gpu_memory
from headway.inference.packing import Operation, Pack
from headway.serving.scheduling.compute_threads import Computing
from headway.serving.scheduling.messages import Release, Reply
from headway.serving.settings import ReplicaSettings

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

_log = logging.getLogger(__name__)

_IDLE_SECONDS = 2.0


class Encoder:
    """Computes in threads of its own, so that the next pack is unpacked while this one is computed."""

    def __init__(self, release: Release, settings: ReplicaSettings) -> None:
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._settings, self._device = settings, _own_device()
        self._computing = Computing(settings.threads)
        self._loading: asyncio.Lock | None = None
        self._models: dict[Release, EncoderModel] = {release: self._load(release)}
        self._waiting_tokens, self._told_at = 0, 0.0

    async def compute(self, release: Release, operation: Operation, pack: Pack, waiting_tokens: int) -> Any:
        """The results of an operation on a pack, computed by exactly this version of the model.

        Args:
            release: which version; loaded first where this replica does not hold it yet.
            operation: what to compute.
            pack: the sequences.
            waiting_tokens: how much more waits for a replica, for the autoscaler.

        Returns:
            This replica's name, and a result for each sequence.
        """
        self._waiting_tokens, self._told_at = waiting_tokens, time.monotonic()
        try:
            model = await self._model(release)
            return Reply(self._replica, await self._computing.run(model, operation, pack))
        except RuntimeError as error:
            _end_if_lost(error)
            raise

    async def prepare(self, release: Release) -> str | None:
        """Load a version beside the others, warm it up and compare it with its stored outputs.

        Returns:
            What is wrong with it; None when it is good.
        """
        from headway.inference.golden import disagreement

        known = release in self._models
        try:
            model = await self._model(release)
            found = await asyncio.to_thread(disagreement, model, release.folder)
        except Exception as error:
            _end_if_lost(error)
            found = f"it cannot be loaded: {error}"
        if found and not known:
            self._models.pop(release, None)
        return found

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's autoscaler is told: tokens that wait, none once nothing has come for a while."""
        idle = time.monotonic() - self._told_at > _IDLE_SECONDS
        return {"waiting_tokens": 0.0 if idle else float(self._waiting_tokens)}

    async def _model(self, release: Release) -> EncoderModel:
        self._loading = self._loading or asyncio.Lock()
        if release not in self._models:
            async with self._loading:
                if release not in self._models:
                    self._models[release] = await asyncio.to_thread(self._load, release)
                    while len(self._models) > self._settings.versions:
                        del self._models[next(iter(self._models))]
        # The one that was used last is the last to be dropped.
        self._models[release] = self._models.pop(release)
        return self._models[release]

    def _load(self, release: Release) -> EncoderModel:
        from pathlib import Path

        from headway.inference.golden import warm_up
        from headway.inference.model import EncoderModel

        model = EncoderModel(Path(release.folder), self._settings.precision, self._device)
        warm_up(model, release.folder)
        if self._settings.cuda_graphs:
            model.record_graphs()
        return model


def _end_if_lost(error: Exception) -> None:
    """End this process if its GPU will compute nothing more in it, as after most of CUDA's errors.

    What it was computing goes to other replicas, and Ray Serve starts another at once. A replica that lived
    on until it had failed three health checks would fail each pack the quickest, and so be sent the next,
    until none had an attempt left. It ends without tidying up, which would call CUDA and might wait for it.
    """
    if is_gpu_lost(error):
        _log.critical("the GPU is lost, and this replica ends: %s", str(error).partition("\n")[0])
        os._exit(1)


def _own_device() -> torch.device:
    """The GPU that Ray gave this replica, of whose memory it takes no more than its fraction; else the CPU.

    Ray hides the other GPUs from it, unless it gave it none.
    """
    import ray

    gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    device = torch.device("cuda", 0) if gpus else torch.device("cpu")
    limit_gpu_memory(device, gpus)
    return device
