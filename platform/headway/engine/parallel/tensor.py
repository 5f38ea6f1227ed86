"""Split the heads and intermediate neurons of layers over workers.

As in Shoeybi et al. 2019, "Megatron-LM", section 3, the first of a pair of products is split by its outputs,
and the second one by its inputs, so that a pair needs one sum over the workers forward and one backward. The
weights are PyTorch's `DTensor`s, as states and optimizers need them, but each worker multiplies its plain
part, since products of `DTensor`s are planned again for each number of tokens, which differs in almost every
unpadded row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from headway.config.base import ConfigError
from headway.engine.model.layers import PAIR_ENTRANCE

# Names of the layers of transformers' BERT, RoBERTa and ELECTRA.
_BY_OUTPUTS = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
_BY_INPUTS = ("attention.output.dense", "output.dense")


def split_layers(layers: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Split encoder layers over the workers of a one-dimensional mesh, in place.

    Raises:
        ConfigError: the layers are not BERT's, or the number of workers does not divide that of heads.
    """
    for layer in layers:
        heads = getattr(getattr(getattr(layer, "attention", None), "self", None), "num_attention_heads", None)
        if heads is None:
            raise ConfigError(
                f"parallel.tensor: {mesh.size()}; only BERT, RoBERTa and ELECTRA can be split so"
            )
        if heads % mesh.size():
            raise ConfigError(f"parallel.tensor: {mesh.size()} does not divide the {heads} attention heads")
        for name in _BY_OUTPUTS:
            _split(layer, name, mesh, _ByOutputs, 0)
        for name in _BY_INPUTS:
            _split(layer, name, mesh, _ByInputs, 1)
        setattr(layer, PAIR_ENTRANCE, _BeginPair(mesh))


class _ByOutputs(nn.Linear):
    """A product of which each worker computes some outputs."""

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, _local(self.weight), _local(self.bias))


class _ByInputs(nn.Linear):
    """A product of which each worker has some inputs, and all get the sum."""

    mesh: DeviceMesh

    def forward(self, hidden: Tensor) -> Tensor:
        return _Sum.apply(F.linear(hidden, _local(self.weight)), self.mesh.get_group()) + _local(self.bias)


def _split(layer: nn.Module, name: str, mesh: DeviceMesh, kind: type[nn.Linear], dimension: int) -> None:
    product: Any = layer.get_submodule(name)
    for key, parameter in list(product.named_parameters()):
        placement = Shard(dimension) if dimension < parameter.dim() else Replicate()
        split = distribute_tensor(parameter.detach(), mesh, [placement])
        setattr(product, key, nn.Parameter(split, requires_grad=parameter.requires_grad))
    product.__class__, product.mesh = kind, mesh


def _local(parameter: Tensor) -> Tensor:
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class _BeginPair:
    """Called on the input of a pair of products; see `model.layers.PAIR_ENTRANCE`."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh

    def __call__(self, hidden: Tensor) -> Tensor:
        return _SumBackward.apply(hidden, self._mesh.get_group())


class _Sum(torch.autograd.Function):
    """Sums over the workers forward, and passes gradients on backward (the paper's operator g)."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any) -> Tensor:
        dist.all_reduce(part, group=group)
        ctx.mark_dirty(part)
        return part

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


class _SumBackward(torch.autograd.Function):
    """Passes numbers on forward, and sums gradients over the workers (the paper's operator f)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed, group=ctx.group)
        return summed, None
