"""The bfloat16 copy that is computed with, and the float32 weights it follows."""

import copy
from typing import Any

import torch
from torch import nn

from headway.engine.training.precision import ComputeCopy


def small_model() -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    model.register_buffer("frequencies", torch.tensor([1 / 3]))
    return model


def test_float32_computes_with_the_weights_themselves():
    model = small_model()
    assert ComputeCopy(model, torch.float32).module is model


def test_gradients_of_all_backward_passes_add_up_in_float32():
    model = small_model()
    compute: Any = ComputeCopy(model, torch.bfloat16)
    reference = copy.deepcopy(compute.module)
    expected = None
    for seed in range(3):
        inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed)).bfloat16()
        compute.module(inputs).sum().backward()
        compute.collect_gradients()
        (gradient,) = torch.autograd.grad(reference(inputs).sum(), reference[0].weight)
        expected = gradient.float() if expected is None else expected + gradient.float()
    assert model[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(model[0].weight.grad, expected, rtol=0, atol=0)
    assert compute.module[0].weight.grad is None


def test_copy_follows_the_weights_and_leaves_buffers_exact():
    model = small_model()
    compute: Any = ComputeCopy(model, torch.bfloat16)
    with torch.no_grad():
        model[0].weight.mul_(3)
    compute.follow()
    assert torch.equal(compute.module[0].weight, model[0].weight.bfloat16())
    assert torch.equal(compute.module.frequencies, model.frequencies)
    assert model[0].weight.dtype == torch.float32


def test_frozen_weights_are_left_alone():
    model = small_model()
    model[0].requires_grad_(False)
    compute: Any = ComputeCopy(model, torch.bfloat16)
    compute.module(torch.randn(4, 6).bfloat16()).sum().backward()
    compute.collect_gradients()
    assert model[0].weight.grad is None and model[2].weight.grad is not None
