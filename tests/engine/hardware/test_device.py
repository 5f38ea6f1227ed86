"""Precision follows from the device."""

from __future__ import annotations

import pytest
import torch

from headway.engine.hardware.device import compute_dtype, default_device, has_fast_bf16, precision_context

CPU = torch.device("cpu")


def test_the_device_is_a_gpu_where_there_is_one():
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_auto_takes_bf16_only_where_it_is_fast():
    expected = torch.bfloat16 if has_fast_bf16(CPU) else torch.float32
    assert compute_dtype("auto", CPU) == expected
    assert compute_dtype("fp32", CPU) == torch.float32
    assert compute_dtype("bf16", CPU) == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_computed_in_the_chosen_dtype_and_weights_stay_float32(dtype):
    layer = torch.nn.Linear(4, 4)
    with precision_context(dtype, CPU):
        output = layer(torch.ones(1, 4))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
