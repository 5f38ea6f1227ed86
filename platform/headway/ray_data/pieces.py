"""Do pieces of work on all cores of a cluster: Ray Data schedules them, and repeats what a process lost."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow

from headway.config.base import ConfigError


def do_on_cluster(works: Sequence[Callable[[], Any]]) -> Iterator[tuple[int, Any]]:
    """Yield the index and the result of each piece of work as it is done, in any order.

    Each runs on one core, in a process that does others before and after it. What they write must be on
    storage that all nodes share; if a process dies, its work is done again.

    Args:
        works: to do; both they and their results can be pickled, and are small.

    Raises:
        ConfigError: a piece of work raised it.
    """
    import ray.data

    if not works:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A block of Ray Data is a task.
    blocks = [pyarrow.table({"index": [n], "work": [pickle.dumps(work)]}) for n, work in enumerate(works)]
    done = ray.data.from_arrow(blocks).map_batches(_do, batch_size=None, batch_format="pyarrow", num_cpus=1)
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
        for index, result in zip(batch["index"].to_pylist(), batch["result"].to_pylist(), strict=True):
            value = pickle.loads(result)
            if isinstance(value, ConfigError):
                raise value
            yield index, value


def _do(batch: pyarrow.Table) -> pyarrow.Table:
    # There is a process for each core: threads of the tokenizers library would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    results = [pickle.dumps(_result(pickle.loads(work))) for work in batch["work"].to_pylist()]
    return pyarrow.table({"index": batch["index"], "result": results})


def _result(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except ConfigError as error:  # Ray would wrap it
        return error
