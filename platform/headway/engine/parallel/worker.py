"""A worker among several that train the same model, each on a part of the batch or of the model.

The workers form a mesh of four dimensions:

- Along `data`, each has the whole model and its own part of the batch.
- Along `shard`, each has its own part of the batch, and a slice of every weight (Rajbhandari et al. 2020,
  "ZeRO", stage 3, by PyTorch's `fully_shard`).
- Along `tensor`, all have the same part of the batch, and each has some heads and intermediate neurons of
  every layer (`tensor.py`).
- Along `pipeline`, all have the same part of the batch, and each has some of the layers (`pipeline.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from headway.config.training import ParallelConfig
from headway.engine.hardware.device import default_device
from headway.engine.parallel.gradients import Average
from headway.engine.parallel.shared_memory import SharedMean
from headway.engine.parallel.tensor import split_layers

DIMENSIONS = ("pipeline", "data", "shard", "tensor")
"""The dimensions of the mesh of workers, the outermost first, since neighbours exchange most."""
_BATCH_DIMENSIONS = ("data", "shard")


@dataclass(frozen=True)
class Worker:
    """This process among the workers; alone if `world_size` is 1.

    Attributes:
        rank: the index of this worker.
        world_size: how many workers there are.
        device: the device that this worker computes on.
        mesh: the workers by pipeline, data, shard and tensor; None if the model is not split.
        batch_mesh: the workers with the same part of the model, each with its own part of the batch.
        is_leaving: whether a machine of the group is about to be taken away.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=default_device)
    mesh: DeviceMesh | None = None
    batch_mesh: DeviceMesh | None = None
    is_leaving: Callable[[], bool] = lambda: False

    def arranged(self, layout: ParallelConfig) -> Worker:
        """The same worker in the mesh of a layout; every worker calls it."""
        if not layout.splits_model:
            return self
        shape = layout.mesh_shape(self.world_size)
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=DIMENSIONS)
        return replace(self, mesh=mesh, batch_mesh=mesh[_BATCH_DIMENSIONS]._flatten("batch"))

    @property
    def data_rank(self) -> int:
        """Which part of each batch this worker computes, counted from 0."""
        return self.rank if self.batch_mesh is None else self.batch_mesh.get_local_rank()

    @property
    def data_size(self) -> int:
        """How many parts each batch is split into."""
        return self.world_size if self.batch_mesh is None else self.batch_mesh.size()

    @property
    def stage(self) -> int:
        """Which stage of a pipeline this worker computes, counted from 0."""
        return 0 if self.mesh is None else self.mesh["pipeline"].get_local_rank()

    @property
    def stages(self) -> int:
        """How many stages the layers are split into."""
        return 1 if self.mesh is None else self.mesh["pipeline"].size()

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values`, of any shape, over the data ranks, in place, on every worker."""
        if self.data_size > 1:
            dist.all_reduce(values, group=None if self.batch_mesh is None else self.batch_mesh.get_group())
        return values

    def gather(self, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all parts of a batch, in the order of their data ranks, on each worker.

        Args:
            rows: any dtype, shape (sizes[data_rank], …).
            sizes: rows of each data rank.
        """
        if self.data_size == 1:
            return rows
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=None if self.batch_mesh is None else self.batch_mesh.get_group())
        return torch.cat([part[:size] for part, size in zip(found, sizes, strict=True)])

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any worker; waits for all of them."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value), device=self.device)
        dist.all_reduce(flag)
        return bool(flag)

    def split(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Split a module's weights over the mesh, in place, to compute with them in `dtype`.

        Raises:
            ConfigError: the size of the tensor dimension does not divide the number of heads.
        """
        if self.mesh is None:
            return module
        layers = [layer for layer in transformer_layers(module) if list(layer.parameters())]
        if self.mesh["tensor"].size() > 1:
            split_layers(layers, self.mesh["tensor"])
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32
        )
        for part in [*layers, module]:
            fully_shard(
                part,
                mesh=self.mesh[_BATCH_DIMENSIONS],
                mp_policy=policy,
                # Otherwise every micro-batch of a pipeline would gather the weights twice.
                reshard_after_forward=False if self.stages > 1 else None,
            )
        for method in ("outputs", "contrasted"):
            if hasattr(module, method):
                register_fsdp_forward_method(module, method)
        return module

    def average(self) -> Average | None:
        """What averages gradients over data ranks; None if there is one rank, or if FSDP averages."""
        if self.world_size == 1 or self.mesh is not None:
            return None
        if self.device.type == "cpu" and (shared := SharedMean.among(self.rank, self.world_size)) is not None:
            return shared.average
        if dist.get_backend() == "nccl":
            return lambda flat: dist.all_reduce(flat, dist.ReduceOp.AVG, async_op=True)
        return lambda flat: dist.all_reduce(flat.div_(self.world_size), async_op=True)


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The encoder layers of a model: in transformers, the items of a list called `layer` or `layers`."""
    lists = [m for name, m in module.named_modules() if name.split(".")[-1] in ("layer", "layers")]
    return [layer for layers in lists if isinstance(layers, nn.ModuleList) for layer in layers]


def hold_back_sums(module: nn.Module, wanted: bool) -> None:
    """Whether a split module does not sum gradients yet, for all but the last micro-batch of a step."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not wanted)
