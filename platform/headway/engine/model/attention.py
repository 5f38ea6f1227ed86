"""Multi-head attention, padded and unpadded, and its registration with transformers.

Scaled dot-product attention and its split into heads follow Vaswani et al. 2017, "Attention Is All You Need",
sections 3.2.1 and 3.2.2. Queries, keys and values are given already projected.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from headway.engine.model.block_attention import attend_in_blocks
from headway.engine.model.gpu_attention import attend_fused, attend_short, fits_short_attention
from headway.engine.model.layout import SequenceLayout

ATTENTION_NAME = "headway"
"""The value of `attn_implementation` under which transformers finds Headway's attention."""


def multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    dropout: float = 0.0,
    *,
    attention_mask: Tensor | None = None,
    layout: SequenceLayout | None = None,
    window: int | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    training: bool = True,
) -> Tensor:
    """Attend from every query to the keys of its own sequence, in `num_heads` independent heads.

    Args:
        query: floating, shape (batch, query_length, embed_dim), or (total_tokens, embed_dim) with `layout`.
            A query without a batch dimension is a single sequence.
        key: same dtype as `query`, shape (batch, key_length, embed_dim), or (total_tokens, embed_dim).
        value: same dtype as `query`, shape (batch, key_length, value_dim), or (total_tokens, value_dim).
        num_heads: how many heads `embed_dim` and `value_dim` are split into; both must be multiples of it.
        dropout: probability in [0, 1) of dropping an attention weight while `training`.
        attention_mask: broadcastable to (batch, num_heads, query_length, key_length): boolean, True if
            a query may attend to a key, or floating and added to the scores. A mask of shape
            (batch, key_length) is True for keys that are not padding. Not allowed with `layout`.
        layout: the boundaries of the sequences, if the tokens of a batch are given unpadded, in one row.
        window: with `layout`, a query sees only keys fewer than `window` positions away, on either side.
        scale: factor on the scores; 1/sqrt(head_dim) if None.
        is_causal: a query sees only keys at its own position or before it. Not allowed with `layout`.
        training: whether dropout is applied.

    Returns:
        Same dtype, shape (batch, query_length, value_dim), or (total_tokens, value_dim) with `layout`.

    Raises:
        ValueError: shapes do not fit together, dropout is outside [0, 1), or a layout comes with a mask.
    """
    _check_arguments(query, key, value, num_heads, dropout)
    probability = dropout if training else 0.0
    if layout is None:
        attended = F.scaled_dot_product_attention(
            _split_heads(query, num_heads),
            _split_heads(key, num_heads),
            _split_heads(value, num_heads),
            attn_mask=_expand_key_mask(attention_mask),
            dropout_p=probability,
            is_causal=is_causal,
            scale=scale,
        )
        # (batch, num_heads, length, head_dim) → (batch, length, value_dim)
        return attended.transpose(-3, -2).flatten(-2)
    if attention_mask is not None or is_causal:
        raise ValueError("multi_head_attention: give a layout, or attention_mask or is_causal, not both")
    # (tokens, width) → (tokens, num_heads, head_dim)
    query, key, value = (tensor.unflatten(-1, (num_heads, -1)) for tensor in (query, key, value))
    return attend_unpadded(query, key, value, layout, probability, window=window, scale=scale)


def _check_arguments(query: Tensor, key: Tensor, value: Tensor, num_heads: int, dropout: float) -> None:
    if num_heads < 1 or query.size(-1) % num_heads or value.size(-1) % num_heads:
        raise ValueError(
            f"multi_head_attention: widths {query.size(-1)} and {value.size(-1)} "
            f"do not split into {num_heads} heads"
        )
    if query.size(-1) != key.size(-1) or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"multi_head_attention: query {tuple(query.shape)}, key {tuple(key.shape)} "
            f"and value {tuple(value.shape)} do not fit together"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"multi_head_attention: dropout is {dropout}, not in [0, 1)")


def _split_heads(tensor: Tensor, num_heads: int) -> Tensor:
    """(batch, length, width) → (batch, num_heads, length, width / num_heads), without a copy."""
    return tensor.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def _expand_key_mask(attention_mask: Tensor | None) -> Tensor | None:
    if attention_mask is None or attention_mask.dim() != 2:
        return attention_mask
    # (batch, key_length) → (batch, 1, 1, key_length)
    return attention_mask.to(torch.bool)[:, None, None, :]


def attend_unpadded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    dropout_probability: float = 0.0,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attend within each sequence of a row whose heads are split already.

    A GPU has fused kernels for this; on a CPU, sequences of similar length share a few large products.

    Args:
        query: floating, shape (tokens, num_heads, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        layout: the sequences' boundaries.
        dropout_probability: of dropping an attention weight.
        window: a query sees only keys fewer than `window` positions away, on either side; None for all keys.
        scale: factor on the scores; 1/sqrt(head_dim) if None.

    Returns:
        Same dtype, shape (tokens, num_heads * head_dim).
    """
    if query.device.type != "cpu":
        return attend_fused(query, key, value, dropout_probability, layout, window, scale).flatten(1)
    return attend_in_blocks(query, key, value, layout, dropout_probability, window, scale)


def attend_projected(
    projected: Tensor | tuple[Tensor, ...],
    head_dim: int,
    layout: SequenceLayout,
    dropout_probability: float = 0.0,
    *,
    window: int | None = None,
) -> Tensor:
    """`attend_unpadded` on the outputs of a layer's projections.

    Args:
        projected: queries, keys and values, (tokens, width) each, or (tokens, 3 * width) as one tensor.
        head_dim: width of a head.
        layout: see `attend_unpadded`.
        dropout_probability: see `attend_unpadded`.
        window: see `attend_unpadded`.

    Returns:
        Same dtype, shape (tokens, width).
    """
    first = projected if isinstance(projected, Tensor) else projected[0]
    if fits_short_attention(first, head_dim, layout, dropout_probability):
        qkv = projected if isinstance(projected, Tensor) else torch.cat(projected, dim=-1)
        return attend_short(qkv, head_dim, layout, window)
    if isinstance(projected, Tensor):
        projected = projected.chunk(3, dim=-1)
    # (tokens, width) → (tokens, num_heads, head_dim)
    query, key, value = (part.unflatten(-1, (-1, head_dim)) for part in projected)
    return attend_unpadded(query, key, value, layout, dropout_probability, window=window)


def headway_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Run `multi_head_attention` for a transformers layer on padded rows; its heads come already split.

    Args:
        module: the calling attention layer.
        query: floating, shape (batch, num_heads, length, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: broadcastable to (batch, num_heads, length, length), or None.
        dropout: probability of dropping an attention weight; transformers passes 0 outside training.
        scaling: factor on the scores.

    Returns:
        The attended values, shape (batch, length, num_heads, head_dim), and None instead of the attention
        weights, which are never computed as a whole.
    """
    batch, num_heads, length, head_dim = query.shape
    # (batch, num_heads, length, head_dim) → (batch, length, num_heads * head_dim)
    query, key, value = (tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value))
    attended = multi_head_attention(
        query, key, value, num_heads, dropout, attention_mask=attention_mask, scale=scaling
    )
    return attended.view(batch, length, num_heads, head_dim), None


AttentionInterface.register(ATTENTION_NAME, headway_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
