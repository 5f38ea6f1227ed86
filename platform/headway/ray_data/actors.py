"""Work in actors of Ray Data, which are sent descriptions of it, and read and write the rest themselves."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow

from headway.cluster import connect
from headway.config.base import ConfigError

_TRIES = 4
"""How often a piece of work may end its process before it ends the run."""
_MAX_TASKS = 4096
"""Pieces that Ray keeps account of; if there are more, several go together."""


class _Actor:
    """An object in an actor. A `ConfigError` is a result, so that it arrives as it was raised."""

    def __init__(self, make: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
        self._call = make(*arguments)

    def __call__(self, batch: pyarrow.Table) -> Iterator[pyarrow.Table]:
        for index, item in zip(batch["index"].to_pylist(), batch["item"].to_pylist(), strict=True):
            try:
                result = self._call(pickle.loads(item))
            except ConfigError as error:
                result = error
            yield pyarrow.table({"index": [index], "result": [pickle.dumps(result)]})


def map_on_actors(
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    *,
    on_gpus: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, result) for each item as it is done, on all machines of the cluster.

    An item whose process or machine dies is done again by another.

    Args:
        make: called in each actor, makes what is applied to items.
        arguments: of `make`.
        items: picklable, and small: the driver holds them all.
        on_gpus: whether each actor gets a GPU and its part of the node's cores, if there are GPUs, and else
            a core; `make` is then also given the number of cores.

    Raises:
        ConfigError: an item raised it.
    """
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = connect.available_gpus() if on_gpus else 0
    cores = _cores_of_a_gpu() if gpus else 1
    actors = max(1, min(gpus or connect.available_cpus(), len(items)))
    described = pyarrow.table({"index": range(len(items)), "item": [pickle.dumps(item) for item in items]})
    each = -(-len(items) // _MAX_TASKS)
    tables = [described.slice(start, each) for start in range(0, len(items), each)]
    with warnings.catch_warnings():
        # Ray has no other way yet to say how often a piece of work is tried again; its default is for ever.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        done = ray.data.from_arrow(tables).map_batches(
            _Actor,
            fn_constructor_args=(make, (*arguments, cores) if on_gpus else arguments),
            batch_size=None,
            batch_format="pyarrow",
            # A cluster whose cores others use has room for one at first.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=cores,
            num_gpus=1 if gpus else 0,
            max_restarts=-1,
            max_task_retries=_TRIES - 1,
        )
    for table in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for index, content in zip(table["index"].to_pylist(), table["result"].to_pylist(), strict=True):
            result = pickle.loads(content)
            if isinstance(result, ConfigError):
                raise result
            yield index, result


def _cores_of_a_gpu() -> int:
    """Cores for each GPU on the node that has the fewest."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return max(1, min(int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU")))
