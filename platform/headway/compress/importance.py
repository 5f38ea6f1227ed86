"""How much each head, neuron, column and layer of a fine-tuned encoder matters to its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from headway.data.batch import Batch
from headway.engine.model.layout import layout_of_batch
from headway.engine.model.unpadded import encoder_layers, run_trunk
from headway.engine.pruning.axes import HIDDEN, axes_of
from headway.engine.pruning.cut import sizes_of
from headway.engine.training.objectives import TaskObjective


def unit_importance(objective: TaskObjective, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The expected size of activation x gradient of each unit (Michel et al. 2019, section 4.1, eq. 2).

    All activations of a unit are multiplied by a number for each sequence, which is 1. The gradient of a
    sequence's loss by it is the sum of activation x gradient over the unit's columns and the tokens.

    Args:
        objective: around a fine-tuned model; its weights are not changed.
        batches: of rows that it was trained on.

    Returns:
        For each group, by the names of `axes_of`, the mean over sequences, float32, shape (units,).
    """
    objective.eval()
    for parameter in objective.parameters():
        parameter.requires_grad_(False)
    counts = sizes_of(objective.model).groups()
    totals = {group: torch.zeros(count) for group, count in counts.items()}
    device = next(objective.parameters()).device
    sequences = 0
    for batch in (batch.to(device) for batch in batches):
        factors = {
            group: torch.ones(len(batch.lengths), count, device=device, requires_grad=True)
            for group, count in counts.items()
        }
        with _multiplied(objective.model, factors, layout_of_batch(batch).owners):
            loss = objective.loss(objective.outputs(batch), batch).total
        gradients = torch.autograd.grad(loss, list(factors.values()), allow_unused=True)
        for group, gradient in zip(factors, gradients, strict=True):
            if gradient is not None:  # a head without a pooler has no pooled columns
                totals[group] += gradient.abs().sum(0).cpu()
        sequences += len(batch.lengths)
    return {group: total / sequences for group, total in totals.items()}


@contextmanager
def _multiplied(model: Any, factors: dict[str, Tensor], owners: Tensor) -> Iterator[None]:
    """While the block runs, a model multiplies its activations by factors of shape (sequences, units).

    Each group's activations are what the layer takes in whose weight has that group as its second axis. Those
    of `hidden` are the hidden states before the first layer and after each one.
    """

    def scaled(group: str, values: Tensor) -> Tensor:
        factor = factors[group]
        if len(values) != len(factor):  # rows are tokens, not sequences
            factor = factor.index_select(0, owners)
        return values * factor.repeat_interleave(values.size(-1) // factor.size(-1), dim=-1)

    def scale_input(group: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return scaled(group, inputs[0]), *inputs[1:]

    def scale_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return scaled(HIDDEN, output)

    with ExitStack() as hooks:
        for name, axes in axes_of(model).items():
            group = axes[1].group if len(axes) > 1 else None
            if group not in (None, HIDDEN):
                module = model.get_submodule(name.rpartition(".")[0])
                hooks.callback(module.register_forward_pre_hook(partial(scale_input, group)).remove)
        layers = encoder_layers(model)
        first = layers[0].register_forward_pre_hook(partial(scale_input, HIDDEN))
        hooks.callback(first.remove)
        for layer in layers:
            hooks.callback(layer.register_forward_hook(scale_output).remove)
        yield


def unit_magnitude(model: Any) -> dict[str, Tensor]:
    """The norm of all weights of each unit: the baseline that needs no data (Han et al. 2015, section 3).

    Returns:
        As `unit_importance` does.
    """
    weights = model.state_dict()
    squares = {group: torch.zeros(count) for group, count in sizes_of(model).groups().items()}
    for name, axes in axes_of(model).items():
        for dimension, axis in enumerate(axes):
            if axis.group is None:
                continue
            # (…, copies x units x columns, …) → (copies, units, columns and all others)
            rows = weights[name].detach().float().cpu().movedim(dimension, 0)
            units = len(squares[axis.group])
            squares[axis.group] += rows.reshape(axis.copies, units, -1).square().sum((0, 2))
    return {group: total.sqrt() for group, total in squares.items()}


def least_harmful_layers(objective: TaskObjective, batches: Sequence[Batch], count: int) -> list[int]:
    """Drop one layer after another, each time the one without which the loss is lowest.

    Returns:
        The numbers of the `count` layers that stay, increasing.
    """
    return sorted(dropping_order(objective, batches, count)[-count:])


@torch.no_grad()
def dropping_order(objective: TaskObjective, batches: Sequence[Batch], count: int = 1) -> list[int]:
    """The numbers of all layers: those that are dropped first, then the last `count`, which are not compared.

    Each time, the layer is dropped without which the loss is lowest.
    """
    objective.eval()
    layers = encoder_layers(objective.model)
    kept = list(range(len(layers)))
    # ModernBERT's first layer has no norm of its own, so no other one can take its place.
    movable = [number for number in kept if number > 0 or objective.model.config.model_type != "modernbert"]
    dropped = []
    while len(kept) > count:
        losses = {
            number: _loss(objective, batches, [layers[other] for other in kept if other != number])
            for number in movable
        }
        dropped.append(min(losses, key=lambda number: losses[number]))
        kept.remove(dropped[-1])
        movable.remove(dropped[-1])
    return dropped + kept


def _loss(objective: TaskObjective, batches: Sequence[Batch], layers: Sequence[nn.Module]) -> float:
    """The summed loss with only some of the layers."""
    objective.trunk = partial(run_trunk, layers=layers)
    there = (batch.to(next(objective.parameters()).device) for batch in batches)
    try:
        return sum(float(objective.loss(objective.outputs(batch), batch).total) for batch in there)
    finally:
        objective.trunk = run_trunk
