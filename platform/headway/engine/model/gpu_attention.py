"""Unpadded attention on a GPU, by the fastest kernel that can do what is asked.

- In half precision without dropout, if no sequence is longer than 128 tokens: `short_attention`.
- In half precision without dropout, with a window of up to 128 tokens on either side: `window_attention`.
- Otherwise in half precision: FlashAttention, with any window and dropout (Dao 2023, "FlashAttention-2").
  Dropout takes about a third of its time, since each weight draws a random number, forward and backward.
- In float32, and on GPUs older than Ampere: the memory-efficient kernel (Rabe and Staats 2021).
- With a window in float32, or if the width of a head is not a multiple of 8: padded blocks with a mask,
  which also compute the padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from headway.engine.model.layout import SequenceLayout

short_attention: Any = None
window_attention: Any = None
if torch.version.cuda is not None:  # PyTorch's other builds come without Triton, and don't need it
    from headway.engine.model import short_attention, window_attention

_HALF = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256


def attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_probability: float,
    layout: SequenceLayout,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention within each sequence of a row.

    Args:
        query: floating, shape (tokens, num_heads, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        dropout_probability: of dropping an attention weight.
        layout: the sequences' boundaries.
        window: a query sees only keys fewer than `window` positions away, on either side; None for all keys.
        scale: factor on the scores; 1/sqrt(head_dim) if None.

    Returns:
        Same dtype and shape.
    """
    head_dim = query.size(-1)
    if window is not None and _fits_window_attention(query, dropout_probability, window):
        return window_attention.attend_window(query, key, value, layout.cu_seqlens, window, scale=scale)
    if _fits_flash(query.dtype, head_dim, query.device):
        return _flash(query, key, value, dropout_probability, layout, window, scale)
    if _fits_memory_efficient(query.dtype, head_dim, window is not None):
        return _memory_efficient(query, key, value, dropout_probability, layout, scale)
    return _padded(query, key, value, dropout_probability, layout, window, scale)


def computes_no_padding(dtype: torch.dtype, head_dim: int, device: torch.device, windowed: bool) -> bool:
    """Whether a fused kernel is used; if not, padded blocks are, as large as the longest sequence."""
    return _fits_flash(dtype, head_dim, device) or _fits_memory_efficient(dtype, head_dim, windowed)


def _fits_flash(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    return _fits(head_dim) and dtype in _HALF and _has_flash_attention(device)


def _fits_memory_efficient(dtype: torch.dtype, head_dim: int, windowed: bool) -> bool:
    return _fits(head_dim) and not windowed and dtype in (*_HALF, torch.float32)


def _fits(head_dim: int) -> bool:
    return head_dim % 8 == 0 and head_dim <= _LARGEST_HEAD


def fits_short_attention(
    projected: Tensor, head_dim: int, layout: SequenceLayout, dropout_probability: float
) -> bool:
    """Whether `short_attention` can be used for queries, keys and values like `projected`."""
    return (
        short_attention is not None
        and layout.longest <= short_attention.LONGEST
        and dropout_probability == 0.0
        and projected.dtype in _HALF
        and head_dim <= 128
        and projected.device.type != "cpu"
        and _has_flash_attention(projected.device)
    )


def _fits_window_attention(query: Tensor, dropout_probability: float, window: int) -> bool:
    return (
        window_attention is not None
        and window <= window_attention.LARGEST_WINDOW
        and dropout_probability == 0.0
        and query.size(-1) <= window_attention.LARGEST_HEAD
        and query.device.type != "cpu"
        and _fits_flash(query.dtype, query.size(-1), query.device)
    )


def attend_short(qkv: Tensor, head_dim: int, layout: SequenceLayout, window: int | None) -> Tensor:
    """Attention by `short_attention`; see `fits_short_attention`.

    Args:
        qkv: half precision, shape (tokens, 3 * width): queries, keys and values.
        head_dim: width of a head.
        layout: the sequences' boundaries.
        window: see `attend_fused`.

    Returns:
        Same dtype, shape (tokens, width).
    """
    num_heads = qkv.size(1) // (3 * head_dim)
    return short_attention.attend_short(qkv, layout.cu_seqlens, num_heads, layout.longest, window=window)


def _has_flash_attention(device: torch.device) -> bool:
    # The meta device stands in for a current GPU.
    return device.type == "meta" or torch.cuda.get_device_capability(device) >= (8, 0)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_probability: float,
    layout: SequenceLayout,
    window: int | None,
    scale: float | None,
) -> Tensor:
    ends, longest = layout.cu_seqlens, layout.longest
    side = -1 if window is None else window - 1
    if dropout_probability == 0.0:
        attended = varlen_attn(
            query, key, value, ends, ends, longest, longest, scale=scale, window_size=(side, side)
        )
        assert isinstance(attended, Tensor)  # a pair only if log-sums are requested
        return attended
    # This is the operator behind `varlen_attn`, which has no dropout.
    return torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        dropout_probability,
        False,
        False,
        scale=scale,
        window_size_left=side,
        window_size_right=side,
    )[0]


def _memory_efficient(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_probability: float,
    layout: SequenceLayout,
    scale: float | None,
) -> Tensor:
    ends, longest = layout.cu_seqlens, layout.longest
    return torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,
        ends,
        ends,
        longest,
        longest,
        dropout_probability,
        0,
        query.requires_grad,
        scale=scale,
    )[0].squeeze(0)


def _padded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_probability: float,
    layout: SequenceLayout,
    window: int | None,
    scale: float | None,
) -> Tensor:
    sequences, longest = len(layout.cu_seqlens) - 1, layout.longest
    positions = torch.arange(longest, device=query.device)
    mask = (positions < layout.cu_seqlens.diff()[:, None])[:, None, None, :]
    if window is not None:
        near = (positions[:, None] - positions).abs() < window
        # A query that is padding must see some key, or softmax would make its row NaN.
        mask = (mask & near) | torch.eye(longest, dtype=torch.bool, device=query.device)
    cells = layout.owners * longest + layout.position_ids
    blocks = [
        # (tokens, num_heads, head_dim) → (sequences, num_heads, longest, head_dim)
        tensor.new_zeros(sequences * longest, *tensor.shape[1:])
        .index_copy(0, cells, tensor)
        .unflatten(0, (sequences, longest))
        .transpose(1, 2)
        for tensor in (query, key, value)
    ]
    query, key, value = blocks
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout_probability, scale=scale
    )
    # (sequences, num_heads, longest, head_dim) → (tokens, num_heads, head_dim)
    return attended.transpose(1, 2).flatten(0, 1).index_select(0, cells)
