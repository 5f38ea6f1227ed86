"""Do pieces of work on all cores of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from headway.ray_data.actors import map_on_actors


def do_on_cluster(works: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the index and the result of each piece of work as it is done, in any order.

    Each runs on one core, in a process that does others before and after it. What they write must be on
    storage that all nodes share; if a process dies, its work is done again.

    Args:
        works: to do; both they and their results can be pickled, and are small.

    Raises:
        ConfigError: a piece of work raised it.
    """
    if works:
        yield from map_on_actors(_Doer, (), works)


class _Doer:
    """Does work in an actor."""

    def __init__(self) -> None:
        # There is a process for each core: threads of the tokenizers library would only compete.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def __call__(self, work: Callable[[], Any]) -> Any:
        return work()
