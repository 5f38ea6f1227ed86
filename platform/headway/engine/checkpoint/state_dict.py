"""Get and set a model's weights and its optimizer's state, by the names in the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from headway.engine.parallel.worker import Worker

_IMPLEMENTATION = ("fused", "foreach")
"""Settings of a group that decide how a step is computed, not what it does."""


def training_state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Parameters, buffers and optimizer state, by their names in an unsharded model.

    The tensors are the model's own, so loading into them loads the model. Tied weights are included once.
    """
    names = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    weights = {name: value for name, value in get_model_state_dict(model).items() if name in names}
    return {"model": weights, "optimizer": get_optimizer_state_dict(model, optimizer)}


def part_of_copies(state: dict[str, Any], rank: int, workers: int) -> dict[str, Any]:
    """What one of several workers writes of a state that each of them has whole: its share of the tensors.

    Each tensor is one worker's, and all have about as many bytes: of tensors of 4, 3, 2 and 1 bytes, the
    first of two workers has 4 and 1, the second 3 and 2. What is no tensor is on each of them.
    """
    tensors = dict(_tensors(state))
    loads = [0] * workers
    mine = set()
    for path in sorted(tensors, key=lambda path: (-tensors[path].nbytes, path)):
        owner = loads.index(min(loads))
        loads[owner] += tensors[path].nbytes
        if owner == rank:
            mine.add(path)
    return _only(state, mine)


def _tensors(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _tensors(item, (*path, name))
        elif isinstance(item, Tensor):
            yield (*path, name), item


def _only(value: dict[str, Any], kept: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The value without the tensors that are not kept, and without the mappings that this leaves empty."""
    found = {}
    for name, item in value.items():
        below = (*path, name)
        if isinstance(item, dict):
            if inner := _only(item, kept, below):
                found[name] = inner
        elif not isinstance(item, Tensor) or below in kept:
            found[name] = item
    return found


def load_optimizer(
    model: nn.Module, optimizer: Optimizer, state: dict[str, Any], groups: list[dict[str, Any]]
) -> None:
    """Load an optimizer's state that was read into what `training_state` returned.

    Args:
        model: the model that is optimised.
        optimizer: of the model's parameters.
        state: the part `optimizer` of the state that was read.
        groups: the `param_groups` before reading. They are kept if the saved ones are for other weights,
            those of another stage of a pipeline. Only AdamW trains split models, and its groups contain
            nothing but what follows from settings and schedule.
    """
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups]:
        state["param_groups"] = groups
    for saved, present in zip(state["param_groups"], groups, strict=True):
        # How a step is computed depends on the present layout, not on the saved one.
        saved |= {name: present[name] for name in _IMPLEMENTATION if name in present}
    set_optimizer_state_dict(model, optimizer, state)


def whole_weights(model: nn.Module, worker: Worker) -> dict[str, Any]:
    """All weights of a model that is split over workers, on the first worker; every worker calls it.

    Other workers get their part of the weights, or nothing.
    """
    # With `cpu_offload`, only the group's first worker keeps weights, but others are the first of their
    # stage.
    options = StateDictOptions(full_state_dict=True, cpu_offload=worker.stages == 1)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    if worker.mesh is None or worker.stages == 1:
        return weights
    group = worker.mesh["pipeline"].get_group()
    if 0 not in dist.get_process_group_ranks(group):
        return {}
    mine = {name: value.cpu() for name, value in weights.items()}
    parts: list[Any] | None = [None] * worker.stages if worker.rank == 0 else None
    dist.gather_object(mine, parts, group=group, group_dst=0)
    return {name: value for part in parts or [mine] for name, value in part.items()}
