"""Attention within a window on a GPU, for sequences of any length, by one program for each block and head.

A query sees keys fewer than `window` positions away, so a block of 64 queries only needs nearby blocks: three
blocks of keys for a window of 64 positions on either side. Backward, one kernel goes through the keys of each
block of queries, and another through the queries of each block of keys, so that every number is summed in a
fixed order and written once. Needs Triton, which comes with PyTorch's builds for GPUs.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from headway.engine.model.window_kernels import backward_keys, backward_queries, forward

LARGEST_WINDOW = 129
"""A window of this size reaches two blocks to either side."""
LARGEST_HEAD = 128
_BLOCK = 64
_REGISTERS: dict[Any, int] = {forward: 128, backward_queries: 128, backward_keys: 168}
"""Registers of a thread, for heads of up to 64. The compiler would use 168, 175 and 241 on Hopper, so that
three, two and two programs fit on each multiprocessor; with these limits four, four and three fit."""


def _launch(kernel: Any, tensors: tuple[Tensor, ...], scales: tuple[float, ...], window: int) -> None:
    query, key, value, ends = tensors[:4]
    num_tokens, num_heads, head_dim = query.shape
    sequences = len(ends) - 1
    kernel[((num_tokens // _BLOCK + sequences) * num_heads,)](
        *tensors,
        query.stride(0),
        key.stride(0),
        value.stride(0),
        *scales,
        num_heads,
        num_tokens,
        sequences,
        WINDOW=window,
        TILES=2 * triton.cdiv(window - 1, _BLOCK) + 1,
        BLOCK=_BLOCK,
        BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
        HEAD_DIM=head_dim,
        num_warps=4 if head_dim <= 64 else 8,
        num_stages=2,
        maxnreg=_REGISTERS[kernel] if head_dim <= 64 else None,
    )


def _in_rows(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors whose heads are contiguous, as in views of a wider row; other tensors are copied."""
    return tuple(
        tensor if tensor.stride()[1:] == (tensor.size(2), 1) else tensor.contiguous() for tensor in tensors
    )


@torch.library.custom_op("headway::attend_window", mutates_args=())
def _attend_window(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    out = query.new_empty(query.shape)
    log_sums = query.new_empty(query.size(1), query.size(0), dtype=torch.float32)
    tensors = (*_in_rows(query, key, value), cu_seqlens, out, log_sums)
    _launch(forward, tensors, (scale * math.log2(math.e),), window)
    return out, log_sums


@_attend_window.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    # `len` would specialise a compiled graph to one number of tokens.
    return query.new_empty(query.shape), query.new_empty(query.size(1), query.size(0), dtype=torch.float32)


@torch.library.custom_op("headway::attend_window_backward", mutates_args=())
def _attend_window_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    out: Tensor,
    log_sums: Tensor,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = [query.new_empty(query.shape) for _ in range(3)]
    deltas, gradient = torch.empty_like(log_sums), gradient.contiguous()
    tensors, scales = (*_in_rows(query, key, value), cu_seqlens, gradient), (scale * math.log2(math.e), scale)
    # The first kernel writes the deltas, and the second one reads them.
    _launch(backward_queries, (*tensors, out, log_sums, deltas, gradients[0]), scales, window)
    _launch(backward_keys, (*tensors, log_sums, deltas, *gradients[1:]), scales, window)
    return gradients[0], gradients[1], gradients[2]


@_attend_window_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape), query.new_empty(query.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, cu_seqlens, *ctx.numbers = inputs
    ctx.save_for_backward(query, key, value, cu_seqlens, *output)
    ctx.set_materialize_grads(False)  # the sums' gradient is not needed


def _derive(ctx: Any, gradient: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    return (*_attend_window_backward(gradient, *ctx.saved_tensors, *ctx.numbers), None, None, None)


_attend_window.register_autograd(_derive, setup_context=_keep)


def attend_window(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    window: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention within each sequence of a row, and within a window.

    Args:
        query: half precision, shape (tokens, num_heads, head_dim), head_dim at most `LARGEST_HEAD`.
        key: likewise.
        value: likewise.
        cu_seqlens: int32, shape (sequences + 1,): where each sequence begins, and the end.
        window: a query sees only keys fewer than `window` positions away, on either side.
        scale: factor on the scores; 1/sqrt(head_dim) if None.

    Returns:
        Same dtype and shape, contiguous. Tokens beyond the last sequence are undefined.
    """
    factor = query.size(-1) ** -0.5 if scale is None else scale
    return _attend_window(query, key, value, cu_seqlens, factor, window)[0]
