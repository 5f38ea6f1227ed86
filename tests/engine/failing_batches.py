"""Batches whose making goes wrong, in a module that the processes that make them can load."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable

from headway.data.batch import Batch


def fails_at_step_4(step: int, make: Callable[[int], list[Batch]], kind: type[Exception]) -> list[Batch]:
    if step == 4:
        raise kind("row 17 is broken")
    return make(step)


def dies_at_step_4(step: int, make: Callable[[int], list[Batch]], parent: int) -> list[Batch]:
    if step == 4:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)
    return make(step)


def collects_garbage_first(step: int, make: Callable[[int], list[Batch]]) -> list[Batch]:
    gc.collect()
    return make(step)
