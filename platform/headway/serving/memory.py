"""Memory that large requests leave behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc

_INTERVAL_S = 10.0


async def return_memory() -> None:
    """Free what failed requests left behind, and give unused memory back to the system, again and again.

    A request that fails leaves a cycle: its exception's traceback holds the frame that holds the future that
    holds the exception. Such cycles hold texts of megabytes and few objects, which the collector counts; it
    would let 100 MB pile up in each flood. Objects that live as long as the process are frozen, so that a
    collection takes a few milliseconds.

    What is freed, glibc would keep in pieces: a flood of requests of 8 MB each left 330 MB in a gateway of
    520 MB. To return them takes 80 ms in a thread; if there is nothing to return, 3 ms at most. Another C
    library is left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while True:
        await asyncio.sleep(_INTERVAL_S)
        gc.collect()
        if trim is not None:
            await asyncio.to_thread(trim, 0)
