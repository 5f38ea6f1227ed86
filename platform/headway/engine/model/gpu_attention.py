"""Unpadded attention by the fused kernels of a GPU, which take the sequences' boundaries as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from headway.engine.model.layout import SequenceLayout

_HALF = (torch.float16, torch.bfloat16)


def fits_fused_kernel(dtype: torch.dtype, dropout_probability: float, window: int | None) -> bool:
    """Whether a fused kernel can do it: the one with windows knows neither dropout nor float32."""
    return window is None or (dtype in _HALF and dropout_probability == 0.0)


def attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_probability: float,
    layout: SequenceLayout,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention within each sequence of a row, without a block or a mask.

    Args:
        query: floating, shape (tokens, num_heads, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        dropout_probability: of dropping an attention weight.
        layout: the sequences' boundaries.
        window: a query sees only keys fewer than so many places away, on either side; None for all.
        scale: factor on the scores; 1/sqrt(head_dim) when None.

    Returns:
        Same dtype and shape.
    """
    if window is not None:
        boundaries = layout.cu_seqlens.to(torch.int32)
        sides = (window - 1, window - 1)
        longest = layout.longest
        attended = varlen_attn(
            query, key, value, boundaries, boundaries, longest, longest, scale=scale, window_size=sides
        )
        assert isinstance(attended, Tensor)  # a pair only where more is asked for
        return attended
    attended = F.scaled_dot_product_attention(
        _ragged(query, layout),
        _ragged(key, layout),
        _ragged(value, layout),
        dropout_p=dropout_probability,
        scale=scale,
    )
    return attended.transpose(1, 2).values()


def _ragged(tensor: Tensor, layout: SequenceLayout) -> Tensor:
    """The row as a nested tensor (sequences, num_heads, length of each, head_dim), without a copy."""
    nested = torch.nested.nested_tensor_from_jagged(
        tensor, offsets=layout.cu_seqlens, min_seqlen=layout.shortest, max_seqlen=layout.longest
    )
    return nested.transpose(1, 2)
