"""Find the device to compute on, and the precisions in which it is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware, faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def has_fast_fp16(device: torch.device) -> bool:
    """Whether the device is a GPU with fast products of float16 matrices: Volta or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def compute_dtype(precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device) -> torch.dtype:
    """The dtype of matrix products; weights and sums stay in float32 while training.

    `auto` is bfloat16 if it is fast. On Volta and Turing GPUs, which are only fast in float16, it is float16.
    """
    if precision == "auto":
        if has_fast_bf16(device):
            return torch.bfloat16
        return torch.float16 if has_fast_fp16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def limit_gpu_memory(device: torch.device, fraction: float) -> None:
    """Limit this process to a fraction of its GPU's memory; 1 is no limit."""
    if device.type == "cuda" and fraction < 1.0:
        torch.cuda.set_per_process_memory_fraction(fraction, device.index or 0)


def is_gpu_lost(error: BaseException) -> bool:
    """Whether a GPU cannot be used by this process any longer: after most CUDA errors, all calls fail.

    Running out of memory is not one of them.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and "CUDA error" in str(error)
    )


def use_tf32(wanted: bool) -> None:
    """Set whether GPUs multiply float32 matrices in TF32, in this process, whatever was set before."""
    # PyTorch has three ways to set this; after the other two, some of its settings cannot be read.
    torch.backends.cuda.matmul.allow_tf32 = wanted


def precision_context(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to `dtype`; does nothing for float32."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(device.type, dtype=dtype if is_half else torch.bfloat16, enabled=is_half)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to a device, without waiting for the device."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def begin_copy_to_host(tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Begin to copy a tensor to the host, after everything that the device has yet to do.

    Returns:
        A function that waits for the copy, but not for later work of the device, and returns the copy.
    """
    if tensor.device.type != "cuda":
        return tensor.cpu
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
    done = torch.cuda.Event()
    done.record()

    def finish() -> torch.Tensor:
        done.synchronize()
        return copy

    return finish
