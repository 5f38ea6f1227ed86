"""One worker among several that train the same model on shares of each batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from headway.engine.device import default_device


@dataclass(frozen=True)
class Worker:
    """This process's place in the group; alone when `world_size` is 1.

    Attributes:
        rank: number among the workers.
        world_size: how many there are.
        device: what this one computes on.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=default_device)

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over all workers, on each of them; any shape."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the workers after each backward pass."""
        if self.world_size == 1:
            return module
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            module, device_ids=device_ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )


@contextmanager
def synchronise_only_if(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Hold back the averaging of gradients in all micro-batches of a step but the last."""
    if wanted or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield
