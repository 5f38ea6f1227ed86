"""Make the next step's batches while this one is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def prefetched(make: Callable[[int], T], first: int, stop: int) -> Iterator[tuple[int, T]]:
    """(step, make(step)) for each step from `first` up to, not including, `stop`, one made ahead."""
    if first >= stop:
        return
    with ThreadPoolExecutor(1, thread_name_prefix="headway-batches") as thread:
        upcoming = thread.submit(make, first)
        for step in range(first, stop):
            made = upcoming.result()
            if step + 1 < stop:
                upcoming = thread.submit(make, step + 1)
            yield step, made
