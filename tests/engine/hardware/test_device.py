"""Precision follows from the device."""

from __future__ import annotations

import pytest
import torch

from headway.engine.hardware.device import (
    begin_copy_to_host,
    compute_dtype,
    default_device,
    has_fast_bf16,
    is_gpu_lost,
    precision_context,
)

CPU = torch.device("cpu")


def test_the_device_is_a_gpu_where_there_is_one():
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_auto_takes_bf16_only_where_it_is_fast():
    expected = torch.bfloat16 if has_fast_bf16(CPU) else torch.float32  # never float16 without a GPU
    assert compute_dtype("auto", CPU) == expected
    assert compute_dtype("fp32", CPU) == torch.float32
    assert compute_dtype("bf16", CPU) == torch.bfloat16
    assert compute_dtype("fp16", CPU) == torch.float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_are_computed_in_the_chosen_dtype_and_weights_stay_float32(dtype):
    layer = torch.nn.Linear(4, 4)
    with precision_context(dtype, CPU):
        output = layer(torch.ones(1, 4))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "bf16", "expected"),
    [
        ((9, 0), True, torch.bfloat16),
        ((7, 5), False, torch.float16),
        ((6, 1), False, torch.float32),  # multiplies float16 at a sixty-fourth of float32's rate
    ],
)
def test_auto_takes_the_fastest_dtype_of_a_gpu(monkeypatch, capability, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype("auto", GPU) == expected
    assert compute_dtype("fp16", GPU) == torch.float16
    assert compute_dtype("fp32", GPU) == torch.float32


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_after_some_errors_a_gpu_is_lost(error, lost):
    assert is_gpu_lost(error) == lost


def test_what_is_on_the_host_is_there_at_once():
    values = torch.arange(3)
    assert begin_copy_to_host(values)() is values


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_to_the_host_holds_what_was_there_when_it_began():
    values = torch.arange(1_000_000, device=GPU)
    finish = begin_copy_to_host(values)
    values.zero_()
    assert torch.equal(finish(), torch.arange(1_000_000))
