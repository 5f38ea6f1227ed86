"""The copy in half precision that is computed with, and the float32 weights it follows."""

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


def test_copy_follows_the_weights_and_leaves_buffers_exact():
    model = small_model()
    compute: Any = ComputeCopy(model, torch.bfloat16)
    with torch.no_grad():
        model[0].weight.mul_(3)
    compute.follow()
    assert torch.equal(compute.module[0].weight, model[0].weight.bfloat16())
    assert torch.equal(compute.module.frequencies, model.frequencies)
    assert model[0].weight.dtype == torch.float32
