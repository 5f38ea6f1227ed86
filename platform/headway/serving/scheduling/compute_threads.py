"""The threads in which a replica computes a pack: one for all cores, or one for each core."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.inference.packing import Operation, Pack

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

MIN_SPLIT_TOKENS = 256
"""Smaller packs are not split."""


class ComputeThreads:
    """The threads of a replica.

    On CPUs all cores compute a small pack together, as nothing else makes a single text quick. But then they
    wait for each other after each of hundreds of operations, and all stand still whenever the gateway takes
    one. So a large pack is split among the cores: none waits, and each starts on the next pack once it is
    done.

    Args:
        cores: that the replica may use.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._all_cores = thread_pool(1, cores)
        self._each_core = thread_pool(cores, 1)
        self._gpu = thread_pool(2, 1)

    async def run(self, model: EncoderModel, operation: Operation, pack: Pack) -> list[Any]:
        """What `model.run` returns, computed off the event loop."""
        loop = asyncio.get_running_loop()
        if model.device.type != "cpu":  # one thread prepares a pack while the other waits for the GPU
            return await loop.run_in_executor(self._gpu, model.run, operation, pack)
        single = self._cores == 1 or len(pack.lengths) == 1
        if single or len(pack.ids) < MIN_SPLIT_TOKENS:
            return await loop.run_in_executor(self._all_cores, model.run, operation, pack)
        parts = split_evenly(pack, self._cores)
        computed = await asyncio.gather(
            *(
                loop.run_in_executor(self._each_core, model.run, operation, select(pack, indices))
                for indices in parts
            )
        )
        results: list[Any] = [None] * len(pack.lengths)
        for indices, part in zip(parts, computed, strict=True):
            for index, result in zip(indices.tolist(), part, strict=True):
                results[index] = result
        return results


def split_evenly(pack: Pack, parts: int) -> list[np.ndarray]:
    """Indices of a pack's sequences, int64, in at most so many parts with about as many tokens each.

    For example, lengths (9, 1, 7, 5) in two parts: indices (0, 1) and (2, 3), of 10 and 12 tokens.
    """
    order = np.argsort(-pack.lengths, kind="stable")
    # To and fro: the part that gets the longer of two sequences gets the shorter of the next two.
    lap = np.concatenate([np.arange(parts), np.arange(parts)[::-1]])
    assigned = np.resize(lap, len(order))
    return [indices for part in range(parts) if len(indices := order[assigned == part])]


def select(pack: Pack, indices: np.ndarray) -> Pack:
    """Some sequences of a pack, in the order of their indices."""
    ends = np.cumsum(pack.lengths)
    ranges = [slice(ends[index] - pack.lengths[index], ends[index]) for index in indices]
    return Pack(
        np.concatenate([pack.ids[part] for part in ranges]),
        np.concatenate([pack.types[part] for part in ranges]),
        pack.lengths[indices],
    )


def thread_pool(threads: int, cores: int) -> ThreadPoolExecutor:
    """Threads that use so many cores each; OpenMP keeps this number by thread."""
    import torch

    return ThreadPoolExecutor(threads, "encoder", torch.set_num_threads, (cores,))
