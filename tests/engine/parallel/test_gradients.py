"""Gradients of what is computed with, added up in float32 for what is optimised."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from headway.engine.parallel import gradients
from headway.engine.parallel.gradients import Gradients
from headway.engine.training.precision import ComputeCopy
from ports import free_port


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def inputs_of(seed, dtype=torch.bfloat16):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_gradients_of_all_backward_passes_add_up_in_float32():
    model = small_model()
    compute: Any = ComputeCopy(model, torch.bfloat16)
    collected = Gradients(compute.weights, compute.copies, None)
    reference = copy.deepcopy(compute.module)
    expected = None
    for seed in range(3):
        with collected.collected(is_last=seed == 2):
            compute.module(inputs_of(seed)).sum().backward()
        (gradient,) = torch.autograd.grad(reference(inputs_of(seed)).sum(), reference[0].weight)
        expected = gradient.float() if expected is None else expected + gradient.float()
    collected.give()
    assert model[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(model[0].weight.grad, expected, rtol=0, atol=0)
    assert compute.module[0].weight.grad is None


def test_a_step_begins_without_the_gradients_of_the_one_before():
    model = small_model()
    compute: Any = ComputeCopy(model, torch.bfloat16)
    collected = Gradients(compute.weights, compute.copies, None)
    seen = []
    for _ in range(2):
        with collected.collected(is_last=True):
            compute.module(inputs_of(0)).sum().backward()
        collected.give()
        seen.append(model[2].weight.grad.clone())
        model.zero_grad()
    assert torch.equal(*seen)


def test_frozen_weights_and_those_out_of_reach_have_none():
    model = small_model()
    model[0].requires_grad_(False)
    compute: Any = ComputeCopy(model, torch.bfloat16)
    collected = Gradients(compute.weights, compute.copies, None)
    with collected.collected(is_last=True):
        (compute.module[2].weight.sum() * 2).backward()
    collected.give()
    assert model[0].weight.grad is None and model[2].bias.grad is None
    assert torch.equal(model[2].weight.grad, torch.full((2, 5), 2.0))


@pytest.fixture
def group():
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_bucket_is_averaged_once_in_a_fixed_order_while_backward_runs(dtype, monkeypatch, group):
    monkeypatch.setattr(gradients, "_BUCKET_NUMBERS", 12)  # several buckets
    model = small_model()
    compute: Any = ComputeCopy(model, dtype)
    sizes = []

    def average(flat):
        sizes.append(len(flat))
        assert flat.dtype == torch.float32
        return dist.all_reduce(flat.mul_(0.5), async_op=True)  # as if another worker had none

    collected = Gradients(compute.weights, compute.copies, average)
    for seed in range(2):
        with collected.collected(is_last=seed == 1):
            compute.module(inputs_of(seed, dtype)).sum().backward()
    collected.give()
    assert sizes == [12, 5, 30]  # from the last weight to the first: 2 + 10, 5, 30
    reference = copy.deepcopy(compute.module)
    for parameter in reference.parameters():
        parameter.grad = None
    expected = [
        torch.autograd.grad(reference(inputs_of(seed, dtype)).sum(), list(reference.parameters()))
        for seed in range(2)
    ]
    for weight, *parts in zip(model.parameters(), *expected, strict=True):
        torch.testing.assert_close(weight.grad, (parts[0].float() + parts[1].float()) / 2, rtol=0, atol=1e-7)


class _Averages:
    """Keeps what is to be averaged, as if there were no other worker."""

    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []

    def __call__(self, flat: torch.Tensor) -> None:
        self.seen.append(flat.clone())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_buckets_are_averaged_in_the_order_of_the_weights_whichever_backward_fills_first(order, monkeypatch):
    """Workers would otherwise average different buckets with each other, or round differently next time."""
    monkeypatch.setattr(gradients, "_BUCKET_NUMBERS", 1)  # a bucket each
    weights = [torch.ones(size, requires_grad=True) for size in (3, 4, 5)]
    averages = _Averages()
    collected = Gradients(weights, weights, averages)
    with collected.collected(is_last=True):
        total = torch.zeros(())
        for index in order:  # backward reaches the last one first
            total = (total + index + 1) * weights[index].sum()
        total.backward()
    assert [len(flat) for flat in averages.seen] == [5, 4, 3]


def test_a_weight_that_backward_does_not_reach_adds_nothing_of_the_step_before():
    weights = [torch.ones(2, requires_grad=True) for _ in range(2)]
    averages = _Averages()
    collected = Gradients(weights, weights, averages)
    for reached in (weights, weights[:1]):
        with collected.collected(is_last=True):
            (3 * torch.stack([weight.sum() for weight in reached])).sum().backward()
        collected.give()
        for weight in weights:
            weight.grad = None
    # The last weights come first.
    assert [flat.tolist() for flat in averages.seen] == [[3.0] * 4, [0.0, 0.0, 3.0, 3.0]]
