"""Measure what the machine can do at best, to which the speeds that Headway reports are compared."""

from __future__ import annotations

import resource
import sys
import time
from functools import lru_cache

import torch

_REPEATS = 5
_LONG_SECONDS = 0.01
"""A product that takes this long is large enough. On a core without bf16 instructions, a product of size
1,024 has the same rate as one of 2,048, whose measurement would take a second in each worker of each
trial."""


@lru_cache
def matrix_product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a large matrix product with the threads of this process, the best of a few measurements.

    A product of (n, n) by (n, n) has 2 n^3 operations; n is 2,048 on a CPU, 8,192 on a GPU, and less if a
    smaller product takes long enough to be measured well.
    """
    largest = 8192 if device.type == "cuda" else 2048
    for size in (largest // 8, largest // 4, largest // 2, largest):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        # The first product also loads the kernel.
        if min(_seconds_of_product(left, right) for _ in range(2)) > _LONG_SECONDS:
            break
    return 2 * size**3 / min(_seconds_of_product(left, right) for _ in range(_REPEATS))


def _seconds_of_product(left: torch.Tensor, right: torch.Tensor) -> float:
    synchronise(left.device)
    started = time.perf_counter()
    left @ right
    synchronise(left.device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    """Wait until the device has done everything; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The peak memory of this process, on the GPU or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
