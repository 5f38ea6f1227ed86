"""One of the processes that average together, in a module that a spawned process can import."""

from __future__ import annotations

import torch
import torch.distributed as dist

from headway.engine.parallel.shared_memory import SharedMean

SIZES = [1, 5, 1_000_003, 6_000_000]  # fewer numbers than workers, and more than are averaged at a time


def rows_of(size: int, dtype: torch.dtype, world: int) -> list[torch.Tensor]:
    """What each worker begins with."""
    return [
        torch.randn(size, generator=torch.Generator().manual_seed(rank)).to(dtype) for rank in range(world)
    ]


def average(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    mean = SharedMean.among(rank, world)
    assert mean is not None
    actual = []
    for dtype in (torch.float32, torch.bfloat16):
        for size in SIZES:
            values = rows_of(size, dtype, world)[rank]
            mean.average(values)
            actual.append(values)
    torch.save(actual, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
