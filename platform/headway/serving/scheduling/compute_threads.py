"""A pack on a replica's GPU or cores: a small one on all of them, a large one dealt out among them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from headway.inference.packing import Operation, Pack

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

WORTH_DEALING = 256
"""Tokens from which on a pack is dealt out."""


def compute_threads(count: int, cores: int) -> ThreadPoolExecutor:
    """Threads whose products take so many cores each: OpenMP keeps that number for each thread that asks."""
    import torch

    return ThreadPoolExecutor(count, "encoder", torch.set_num_threads, (cores,))


class Computing:
    """The threads of a replica.

    Cores that share every product wait for each other after each of its hundreds of operations. That is the
    only way to make one text quick, but where the gateway takes a core for a moment all others stand still.
    Cores with sequences of their own never wait, and go on to the next pack when they are done.

    Args:
        cores: that the replica may use.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._together = compute_threads(1, cores)
        self._apart = compute_threads(cores, 1)
        self._ahead = compute_threads(2, 1)

    async def run(self, model: EncoderModel, operation: Operation, pack: Pack) -> list[Any]:
        """What `model.run` gives, computed off the event loop."""
        loop = asyncio.get_running_loop()
        if model.device.type != "cpu":  # one thread prepares a pack while the other waits for the GPU
            return await loop.run_in_executor(self._ahead, model.run, operation, pack)
        alone = self._cores == 1 or len(pack.lengths) == 1
        if alone or len(pack.ids) < WORTH_DEALING:
            return await loop.run_in_executor(self._together, model.run, operation, pack)
        hands = dealt(pack, self._cores)
        parts = await asyncio.gather(
            *(
                loop.run_in_executor(self._apart, model.run, operation, selected(pack, places))
                for places in hands
            )
        )
        results: list[Any] = [None] * len(pack.lengths)
        for places, part in zip(hands, parts, strict=True):
            for place, result in zip(places.tolist(), part, strict=True):
                results[place] = result
        return results


def dealt(pack: Pack, hands: int) -> list[np.ndarray]:
    """Places of a pack's sequences for each of some hands, with about as many tokens in each."""
    order = np.argsort(-pack.lengths, kind="stable")
    # To and fro: the hand that was given the longer one is given the shorter one next.
    lap = np.concatenate([np.arange(hands), np.arange(hands)[::-1]])
    turns = np.resize(lap, len(order))
    return [chosen for hand in range(hands) if len(chosen := order[turns == hand])]


def selected(pack: Pack, places: np.ndarray) -> Pack:
    """Some sequences of a pack, in the order of their places."""
    ends = np.cumsum(pack.lengths)
    ranges = [slice(ends[place] - pack.lengths[place], ends[place]) for place in places]
    return Pack(
        np.concatenate([pack.ids[part] for part in ranges]),
        np.concatenate([pack.types[part] for part in ranges]),
        pack.lengths[places],
    )
