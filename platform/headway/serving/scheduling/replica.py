"""A replica: a Ray Serve actor that computes packs with one version of a model, or several in a roll-out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
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

_MAX_SLOWNESS = 20.0
"""A pack that takes so many times as long as it should hangs, however slow the replica is."""

_PROBE = (8,)
_TIMED = (32,) * 8
"""Lengths of the sequences that are computed to see whether, and how fast, the replica computes."""


class WrongAnswersError(Exception):
    """A version does not give the answers that are stored with it."""


class Encoder:
    """Computes in threads, so that the next pack is unpacked while one is computed.

    A replica that can no longer compute ends its process, so that its packs go to others at once, and Ray
    Serve starts a new one. If it lived on it would fail packs faster than others compute them, and so get
    most of them.
    """

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
        self._seconds_per_token = _measured(self._models[release])
        self._started: dict[int, tuple[float, int]] = {}  # packs that are computed: when they began, tokens
        self._numbers = itertools.count()
        self._computed_at = 0.0
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
            results = await self._run(model, operation, pack)
        except Exception as error:
            await self._end_if_broken(error)
            raise
        finally:
            self._packs -= 1
            self._unanswered_tokens = max(0, self._unanswered_tokens - len(pack.ids))
            self._reported_at = time.monotonic()
        return Reply(self._replica, results)

    async def check_health(self) -> None:
        """Compute something if nothing was computed lately, and end if that fails or if a pack hangs."""
        now = time.monotonic()
        for started, tokens in self._started.values():
            if now - started > self._max_seconds(tokens):
                _end(f"a pack of {tokens} tokens has been computed for {now - started:.0f} s")
        if not self._started and now - self._computed_at > _IDLE_S:
            try:
                await self._probe()
            except Exception as error:
                _end(f"it computes nothing more: {_first_line(error)}")

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
            await self._end_if_broken(error)
            return f"it cannot be loaded: {error}"
        return None

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's autoscaler gets: tokens without an answer; 0 if there was no pack for a while."""
        idle = not self._packs and time.monotonic() - self._reported_at > _IDLE_S
        return {UNANSWERED: 0.0 if idle else float(self._unanswered_tokens)}

    async def _run(self, model: EncoderModel, operation: Operation, pack: Pack) -> list[Any]:
        number = next(self._numbers)
        self._started[number] = time.monotonic(), len(pack.ids)
        computing = asyncio.ensure_future(self._threads.run(model, operation, pack))
        computing.add_done_callback(lambda done: self._ended(number, done))
        # The thread goes on even if the gateway gives the pack up; that it hangs must not be forgotten then.
        return await asyncio.shield(computing)

    def _ended(self, number: int, done: asyncio.Future[list[Any]]) -> None:
        del self._started[number]
        if not done.cancelled() and done.exception() is None:
            self._computed_at = time.monotonic()

    async def _probe(self) -> None:
        """Compute a few tokens.

        Raises:
            Exception: it cannot be done.
        """
        model = next(reversed(self._models.values()))
        for row in await self._run(model, *_some_work(model, _PROBE)):
            if not np.isfinite(row).all():
                raise ValueError("its outputs are not finite")

    def _max_seconds(self, tokens: int) -> float:
        """After which a pack that is still computed hangs. Others may be computed before it."""
        return max(self._settings.pack_timeout_s, tokens * self._seconds_per_token * _MAX_SLOWNESS)

    async def _end_if_broken(self, error: Exception) -> None:
        """End this process if an error is not the input's fault: if what it could compute fails as well."""
        if is_gpu_lost(error):
            _end(f"the GPU is lost: {_first_line(error)}")
        try:
            await self._probe()
        except Exception:
            _end(f"it computes nothing more: {_first_line(error)}")

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


def _some_work(model: EncoderModel, lengths: Sequence[int]) -> tuple[Operation, Pack]:
    """A computation that any model can do: every vocabulary has a first token."""
    cut = np.minimum(np.asarray(lengths, np.int64), model.description.max_length)
    ids, types = np.zeros(cut.sum(), np.int32), np.zeros(cut.sum(), np.uint8)
    return Operation(model.description.main_operation), Pack(ids, types, cut)


def _measured(model: EncoderModel) -> float:
    """Seconds that a token takes."""
    operation, pack = _some_work(model, _TIMED)
    model.run(operation, pack)  # the first time takes longer
    started = time.monotonic()
    model.run(operation, pack)
    return (time.monotonic() - started) / len(pack.ids)


def _end(reason: str) -> NoReturn:
    """End this process without cleaning up, since that may call CUDA, and wait for it."""
    _log.critical("this replica ends: %s", reason)
    os._exit(1)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


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
