"""Attention for short sequences on a GPU, by one program for each sequence and head.

A sequence of up to 128 tokens fits into one tile with all its scores. So only the inputs are saved for
backward, no sum runs over blocks, and the gradients of queries, keys and values are written side by side, as
the backward pass of their projection needs them. Needs Triton, which comes with PyTorch's builds for GPUs.

    qkv (tokens, 3 * num_heads * head_dim) → (tokens, num_heads * head_dim)
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 128
"""Tokens of the longest sequence that fits."""
_TILES = ((0, 32), (32, 64), (64, 128))
"""Ranges of lengths: more than the first, and up to the second number of tokens. Each is one launch."""
_WARPS = {32: 2, 64: 4, 128: 8}


@triton.jit
def _load(rows, start, positions, length, width, column, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr):
    """A tile (block, BLOCK_D) of a row of tokens; zeros beyond the sequence."""
    dims = tl.arange(0, BLOCK_D)
    pointers = rows + (start + positions)[:, None].to(tl.int64) * width + column + dims[None, :]
    return tl.load(pointers, mask=(positions < length)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _store(
    rows, values, start, positions, length, width, column, BLOCK_D: tl.constexpr, HEAD_DIM: tl.constexpr
):
    dims = tl.arange(0, BLOCK_D)
    pointers = rows + (start + positions)[:, None].to(tl.int64) * width + column + dims[None, :]
    mask = (positions < length)[:, None] & (dims < HEAD_DIM)[None, :]
    tl.store(pointers, values.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def _weights(query, key, positions, length, scale, window):
    """Softmax over the sequence's keys, float32, shape (block, block)."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
    seen = (positions < length)[None, :]
    distance = positions[:, None] - positions[None, :]
    near = (distance < window) & (distance > -window)
    # A query beyond the sequence must see some key, or softmax would make its row NaN.
    scores = tl.where(seen & (near | (positions >= length)[:, None]), scores, float("-inf"))
    powers = tl.exp(scores - tl.max(scores, 1)[:, None])
    return powers / tl.sum(powers, 1)[:, None]


@triton.jit
def _forward(
    qkv,
    ends,
    out,
    scale,
    window,
    num_heads,
    LOWER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(ends + sequence)
    length = tl.load(ends + sequence + 1) - start
    if (length > LOWER) & (length <= BLOCK):
        width = num_heads * HEAD_DIM
        column = head * HEAD_DIM
        positions = tl.arange(0, BLOCK)
        query = _load(qkv, start, positions, length, 3 * width, column, BLOCK_D, HEAD_DIM)
        key = _load(qkv, start, positions, length, 3 * width, width + column, BLOCK_D, HEAD_DIM)
        value = _load(qkv, start, positions, length, 3 * width, 2 * width + column, BLOCK_D, HEAD_DIM)
        weights = _weights(query, key, positions, length, scale, window)
        attended = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        _store(out, attended, start, positions, length, width, column, BLOCK_D, HEAD_DIM)


@triton.jit
def _backward(
    qkv,
    ends,
    gradient,
    out,
    scale,
    window,
    num_heads,
    LOWER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(ends + sequence)
    length = tl.load(ends + sequence + 1) - start
    if (length > LOWER) & (length <= BLOCK):
        width = num_heads * HEAD_DIM
        column = head * HEAD_DIM
        positions = tl.arange(0, BLOCK)
        query = _load(qkv, start, positions, length, 3 * width, column, BLOCK_D, HEAD_DIM)
        key = _load(qkv, start, positions, length, 3 * width, width + column, BLOCK_D, HEAD_DIM)
        value = _load(qkv, start, positions, length, 3 * width, 2 * width + column, BLOCK_D, HEAD_DIM)
        gradient_tile = _load(gradient, start, positions, length, width, column, BLOCK_D, HEAD_DIM)
        weights = _weights(query, key, positions, length, scale, window)
        to_weights = tl.dot(gradient_tile, tl.trans(value), input_precision="ieee")
        to_value = tl.dot(tl.trans(weights.to(value.dtype)), gradient_tile, input_precision="ieee")
        _store(out, to_value, start, positions, length, 3 * width, 2 * width + column, BLOCK_D, HEAD_DIM)
        # The derivative of softmax; rows beyond the sequence have a gradient of zero, and contribute nothing.
        to_scores = weights * (to_weights - tl.sum(weights * to_weights, 1)[:, None]) * scale
        to_scores = to_scores.to(value.dtype)
        to_query = tl.dot(to_scores, key, input_precision="ieee")
        _store(out, to_query, start, positions, length, 3 * width, column, BLOCK_D, HEAD_DIM)
        to_key = tl.dot(tl.trans(to_scores), query, input_precision="ieee")
        _store(out, to_key, start, positions, length, 3 * width, width + column, BLOCK_D, HEAD_DIM)


def _launch(
    kernel: Any, tensors: tuple[Tensor, ...], num_heads: int, longest: int, scale: float, window: int
) -> None:
    ends, head_dim = tensors[1], tensors[0].size(1) // (3 * num_heads)
    for lower, block in _TILES:
        if longest > lower:
            kernel[(len(ends) - 1, num_heads)](
                *tensors,
                scale,
                window,
                num_heads,
                LOWER=lower,
                BLOCK=block,
                BLOCK_D=max(16, triton.next_power_of_2(head_dim)),
                HEAD_DIM=head_dim,
                num_warps=_WARPS[block],
            )


@torch.library.custom_op("headway::attend_short", mutates_args=())
def _attend_short(
    qkv: Tensor, cu_seqlens: Tensor, num_heads: int, longest: int, scale: float, window: int
) -> Tensor:
    out = qkv.new_empty(qkv.size(0), qkv.size(1) // 3)
    _launch(_forward, (qkv, cu_seqlens, out), num_heads, longest, scale, window)
    return out


@_attend_short.register_fake
def _(qkv: Tensor, cu_seqlens: Tensor, num_heads: int, longest: int, scale: float, window: int) -> Tensor:
    return qkv.new_empty(qkv.size(0), qkv.size(1) // 3)  # `len` would specialise a compiled graph


@torch.library.custom_op("headway::attend_short_backward", mutates_args=())
def _attend_short_backward(
    gradient: Tensor, qkv: Tensor, cu_seqlens: Tensor, num_heads: int, longest: int, scale: float, window: int
) -> Tensor:
    out = torch.empty_like(qkv)
    _launch(_backward, (qkv, cu_seqlens, gradient, out), num_heads, longest, scale, window)
    return out


@_attend_short_backward.register_fake
def _(
    gradient: Tensor, qkv: Tensor, cu_seqlens: Tensor, num_heads: int, longest: int, scale: float, window: int
) -> Tensor:
    return torch.empty_like(qkv)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, cu_seqlens, *ctx.numbers = inputs
    ctx.save_for_backward(qkv, cu_seqlens)


def _derive(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    qkv, cu_seqlens = ctx.saved_tensors
    to_qkv = _attend_short_backward(gradient.contiguous(), qkv, cu_seqlens, *ctx.numbers)
    return to_qkv, None, None, None, None, None


_attend_short.register_autograd(_derive, setup_context=_keep)


def attend_short(
    qkv: Tensor,
    cu_seqlens: Tensor,
    num_heads: int,
    longest: int,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention within each sequence of a row, none longer than `LONGEST`.

    Args:
        qkv: half precision, shape (tokens, 3 * num_heads * head_dim): queries, keys and values, contiguous.
        cu_seqlens: int32, shape (sequences + 1,): where each sequence begins, and the end.
        num_heads: of queries, of keys and of values.
        longest: tokens of the longest sequence.
        window: a query sees only keys fewer than `window` positions away, on either side; None for all keys.
        scale: factor on the scores; 1/sqrt(head_dim) if None.

    Returns:
        Same dtype, shape (tokens, num_heads * head_dim). Tokens beyond the last sequence are undefined.
    """
    head_dim = qkv.size(1) // (3 * num_heads)
    factor = head_dim**-0.5 if scale is None else scale
    return _attend_short(qkv, cu_seqlens, num_heads, longest, factor, LONGEST if window is None else window)
