"""One worker among several that train the same model: on shares of each batch, or on parts of the model.

The workers form a mesh of four dimensions. Along `data` each has the whole model and a share of the batch;
along `shard` a share of the batch and a slice of every weight (Rajbhandari et al. 2020, "ZeRO", stage 3, by
PyTorch's `fully_shard`); along `tensor` the same share of the batch, and the heads and intermediate neurons
of a layer are split (Shoeybi et al. 2019, "Megatron-LM", section 3); along `pipeline` the same share, and
some of the layers (`pipeline.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

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
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

from headway.config import ConfigError, ParallelConfig
from headway.engine.device import default_device
from headway.engine.shared_mean import SharedMean

DIMENSIONS = ("pipeline", "data", "shard", "tensor")
"""Of the mesh of workers, the outermost first: neighbours exchange most."""
_BATCH_DIMENSIONS = ("data", "shard")

# A pair of matrices a layer: the first is split by its outputs, the second by its inputs, so that the pair
# needs one sum over the workers. Names are those of transformers' BERT, RoBERTa and ELECTRA.
_TENSOR_PLAN: dict[str, type[ParallelStyle]] = {
    "attention.self.query": ColwiseParallel,
    "attention.self.key": ColwiseParallel,
    "attention.self.value": ColwiseParallel,
    "attention.output.dense": RowwiseParallel,
    "intermediate.dense": ColwiseParallel,
    "output.dense": RowwiseParallel,
}


@dataclass(frozen=True)
class Worker:
    """This process's place in the group; alone when `world_size` is 1.

    Attributes:
        rank: number among the workers.
        world_size: how many there are.
        device: what this one computes on.
        mesh: the workers by pipeline, data, shard and tensor where the model is split over them, else None.
        batch_mesh: those of them that have this one's part of the model, each with a share of the batch.
        is_leaving: whether a machine of the group is about to be taken away.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=default_device)
    mesh: DeviceMesh | None = None
    batch_mesh: DeviceMesh | None = None
    is_leaving: Callable[[], bool] = lambda: False

    def arranged(self, layout: ParallelConfig) -> Worker:
        """The same worker with its place in the mesh that a layout wants; every worker calls it."""
        if not layout.splits_model:
            return self
        shape = layout.mesh_shape(self.world_size)
        mesh = init_device_mesh(self.device.type, shape, mesh_dim_names=DIMENSIONS)
        return replace(self, mesh=mesh, batch_mesh=mesh[_BATCH_DIMENSIONS]._flatten("batch"))

    @property
    def share(self) -> int:
        """Which share of each batch this worker computes, counted from 0."""
        return self.rank if self.batch_mesh is None else self.batch_mesh.get_local_rank()

    @property
    def shares(self) -> int:
        """How many shares each batch is split into."""
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
        """`values` summed over the shares of a batch, on each worker; any shape."""
        if self.shares > 1:
            dist.all_reduce(values, group=None if self.batch_mesh is None else self.batch_mesh.get_group())
        return values

    def any(self, value: bool) -> bool:
        """Whether `value` is true on any worker."""
        flag = torch.tensor(int(value), device=self.device)
        if self.world_size > 1:
            dist.all_reduce(flag)
        return bool(flag)

    def split(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        """Split a module's weights over the mesh, in place, to be computed with in `dtype`.

        Raises:
            ConfigError: the heads do not divide by the size of the tensor dimension.
        """
        if self.mesh is None:
            return module
        layers = [layer for layer in transformer_layers(module) if list(layer.parameters())]
        if self.mesh["tensor"].size() > 1:
            _split_tensors(layers, self.mesh["tensor"])
        policy = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32
        )
        for part in [*layers, module]:
            fully_shard(
                part,
                mesh=self.mesh[_BATCH_DIMENSIONS],
                mp_policy=policy,
                # Every micro-batch of a pipeline would gather the weights twice.
                reshard_after_forward=False if self.stages > 1 else None,
            )
        if hasattr(module, "outputs"):
            register_fsdp_forward_method(module, "outputs")
        return module

    def replicate(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over the shares of a batch after each backward pass."""
        if self.world_size == 1 or self.mesh is not None:
            return module
        on_gpu = self.device.type == "cuda"
        mean = None if on_gpu else SharedMean.among(self.rank, self.world_size)
        with warnings.catch_warnings():
            # Its successor would still send the buffers once, and PyTorch before 2.13 does not know it.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            replica = DistributedDataParallel(
                module,
                device_ids=[self.device] if on_gpu else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # Otherwise the gradients are laid out anew after the first step of a process. From three
                # workers on, an all-reduce rounds by their place in the layout: a resumed run would differ.
                find_unused_parameters=self.world_size > 2 and mean is None,
            )
        if mean is not None:
            replica.register_comm_hook(None, mean.hook)
        return replica


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The encoder layers of a model, by transformers' naming: the items of its list called `layer(s)`."""
    lists = [m for name, m in module.named_modules() if name.split(".")[-1] in ("layer", "layers")]
    return [layer for found in lists if isinstance(found, nn.ModuleList) for layer in found]


def _split_tensors(layers: list[nn.Module], mesh: DeviceMesh) -> None:
    for layer in layers:
        heads = getattr(getattr(getattr(layer, "attention", None), "self", None), "num_attention_heads", None)
        if heads is None:
            raise ConfigError(
                f"parallel.tensor: {mesh.size()}; only BERT, RoBERTa and ELECTRA can be split so"
            )
        if heads % mesh.size():
            raise ConfigError(f"parallel.tensor: {mesh.size()} does not divide the {heads} attention heads")
        parallelize_module(layer, mesh, {name: style() for name, style in _TENSOR_PLAN.items()})


@contextmanager
def synchronise_only_if(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Hold back the averaging of gradients in all micro-batches of a step but the last."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(wanted)
        yield
    elif wanted or not isinstance(module, DistributedDataParallel):
        yield
    else:
        with module.no_sync():
            yield


def clip_gradients(
    module: nn.Module, most: float, worker: Worker | None = None, borrowed: Sequence[nn.Parameter] = ()
) -> float:
    """Scale all gradients down so that their norm is at most `most`, whatever they are split over.

    Args:
        module: this worker's part of the model.
        most: the largest norm that is left alone.
        worker: its place, where the model is split.
        borrowed: weights that another stage of a pipeline has too, which counts them.

    Returns:
        The Euclidean norm of all gradients together, before.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
    if worker is None or worker.mesh is None:
        return float(nn.utils.clip_grad_norm_(parameters, most))
    by_mesh: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        by_mesh.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    elsewhere = {id(parameter) for parameter in borrowed}
    counted = [[p for p in some if id(p) not in elsewhere] for some in by_mesh.values()]
    squares = torch.zeros((), device=worker.device)
    for some in counted:
        squares += _norm_of_gradients(some).square()
    if worker.stages > 1:
        dist.all_reduce(squares, group=worker.mesh["pipeline"].get_group())
    norm = squares.sqrt()
    for some in by_mesh.values():
        nn.utils.clip_grads_with_norm_(some, most, norm)
    return float(norm)


def _norm_of_gradients(parameters: list[Tensor]) -> Tensor:
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
