"""Multi-head attention, padded and unpadded, and its registration with transformers.

Scaled dot-product attention and its split into heads follow Vaswani et al. 2017, "Attention Is All
You Need", sections 3.2.1 and 3.2.2. The projections belong to the caller: here come queries, keys
and values that are projected already.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from headway.engine.model.dropout import dropout
from headway.engine.model.gpu_attention import attend_fused, attend_short, fits_short_attention
from headway.engine.model.layout import HeadIndices, SequenceGroup, SequenceLayout

ATTENTION_NAME = "headway"
"""The value of `attn_implementation` under which transformers finds Headway's attention."""

_LONGEST_DENSE = 256


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
            Without a batch dimension it is one sequence.
        key: same dtype as `query`, shape (batch, key_length, embed_dim), or (total_tokens, embed_dim).
        value: same dtype as `query`, shape (batch, key_length, value_dim), or (total_tokens, value_dim).
        num_heads: heads that `embed_dim` and `value_dim` are split into, each a multiple of it.
        dropout: probability in [0, 1) of dropping an attention weight; only while `training`.
        attention_mask: broadcastable to (batch, num_heads, query_length, key_length): boolean with True
            where attention is allowed, or floating and added to the scores. A mask of shape
            (batch, key_length) marks the keys that are not padding. Not together with `layout`.
        layout: where the sequences lie when the tokens of a batch are given unpadded, in one row.
        window: with `layout`, let a query see only keys fewer than so many places away, on either side.
        scale: factor on the scores; 1/sqrt(head_dim) when None.
        is_causal: let a query see only keys at its own place or before it. Not together with `layout`.
        training: whether dropout is applied.

    Returns:
        Same dtype, shape (batch, query_length, value_dim), or (total_tokens, value_dim) with `layout`.

    Raises:
        ValueError: shapes that do not fit, a dropout outside [0, 1), or a mask together with a layout.
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
        return attended.transpose(-3, -2).flatten(-2)
    if attention_mask is not None or is_causal:
        raise ValueError("multi_head_attention: a layout says it all; give no attention_mask or is_causal")
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
    """Attend within each sequence of a row, from heads that are split already.

    A GPU has fused kernels for it; a CPU takes sequences of like length together, in few, large products.

    Args:
        query: floating, shape (tokens, num_heads, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        layout: the sequences' boundaries.
        dropout_probability: of dropping an attention weight.
        window: a query sees only keys fewer than so many positions away, on either side; None for all.
        scale: factor on the scores; 1/sqrt(head_dim) when None.

    Returns:
        Same dtype, shape (tokens, num_heads * head_dim).
    """
    if query.device.type != "cpu":
        return attend_fused(query, key, value, dropout_probability, layout, window, scale).flatten(1)
    return _attend_in_blocks(query, key, value, layout, dropout_probability, window, scale)


def attend_projected(
    projected: Tensor | tuple[Tensor, ...],
    head_dim: int,
    layout: SequenceLayout,
    dropout_probability: float = 0.0,
    *,
    window: int | None = None,
) -> Tensor:
    """`attend_unpadded` on what a layer's projections give.

    Args:
        projected: queries, keys and values, (tokens, width) each, or (tokens, 3 * width) together.
        head_dim: numbers of a head.
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
    # (tokens, width) → (tokens, heads, head_dim)
    query, key, value = (part.unflatten(-1, (-1, head_dim)) for part in projected)
    return attend_unpadded(query, key, value, layout, dropout_probability, window=window)


@torch.compiler.disable  # every batch has other blocks
def _attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    dropout_probability: float,
    window: int | None,
    scale: float | None,
) -> Tensor:
    num_heads = query.size(1)
    places = layout.places(num_heads)
    sizes = [group.count * num_heads * group.longest for group in layout.groups]
    blocks = [_ToBlocks.apply(tensor.flatten(0, 1), places).split(sizes) for tensor in (query, key, value)]
    attended = [
        _attend_block(
            [block.view(group.count, num_heads, group.longest, block.size(1)) for block in trio],
            group,
            dropout_probability,
            window,
            scale,
        )
        for group, *trio in zip(layout.groups, *blocks, strict=True)
    ]
    rows = _FromBlocks.apply(torch.cat([block.flatten(0, 2) for block in attended]), places)
    return rows.view(len(query), -1)


class _ToBlocks(torch.autograd.Function):
    """Rows of the row's heads into the groups' blocks.

    What padding repeats is masked or left out later, so its gradient is zero and only real places count.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: HeadIndices) -> Tensor:
        ctx.scatter = places.scatter
        return rows.index_select(0, places.gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.scatter), None


class _FromBlocks(torch.autograd.Function):
    """The real places of the groups' blocks back into the row."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, places: HeadIndices) -> Tensor:
        ctx.scatter, ctx.num_rows = places.scatter, len(blocks)
        return blocks.index_select(0, places.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        blocks = gradient.new_zeros(ctx.num_rows, gradient.size(1))
        return blocks.index_copy_(0, ctx.scatter, gradient), None


def _windowed(group: SequenceGroup, window: int | None, device: torch.device) -> Tensor | None:
    """The group's mask, (count or 1, 1, 1 or longest, longest), with keys outside the window hidden too."""
    if window is None or group.longest <= window:
        return group.key_mask
    places = torch.arange(group.longest, device=device)
    near = ((places[:, None] - places).abs() < window)[None, None]
    if group.key_mask is None:
        return near
    # A query that is padding itself must see something, or its row would not be a number.
    return (near & group.key_mask) | torch.eye(group.longest, dtype=torch.bool, device=device)


def _attend_block(
    block: list[Tensor],
    group: SequenceGroup,
    dropout_probability: float,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention over a group's queries, keys and values, (count, num_heads, longest, head_dim) each.

    Returns:
        The same shape.
    """
    query, key, value = block
    mask = _windowed(group, window, query.device)
    if group.longest > _LONGEST_DENSE:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_probability, scale=scale
        )
    # On a processor the fused kernel pays off for long sequences only: for 16 of 126 tokens in 4 heads,
    # forward and backward, bf16, 1 core: fused 33 ms, these products 14 ms.
    count, num_heads, longest, head_dim = query.shape
    bias = query.new_zeros(())
    if mask is not None:
        bias = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        bias = bias.expand(count, num_heads, -1, longest).reshape(count * num_heads, -1, longest)
    scale = head_dim**-0.5 if scale is None else scale
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
    # Rows of a length that does not fill the processor's registers are slow in bf16. 16 x 12 heads, 1 core:
    # 30 tokens 0.95 ms against 0.17 ms in float32, 126 tokens 5.2 ms against 1.9 ms. In training, with what
    # is kept for the way back, it comes to nothing.
    exact = scores.dtype if scores.requires_grad else torch.promote_types(scores.dtype, torch.float32)
    weights = dropout(scores.softmax(-1, dtype=exact).to(value.dtype), dropout_probability)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, (count, num_heads))


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
    """Run `multi_head_attention` for a transformers layer on padded rows; it hands its heads over split.

    Args:
        module: the attention layer that calls.
        query: floating, shape (batch, num_heads, length, head_dim); `key` and `value` likewise.
        key: see `query`.
        value: see `query`.
        attention_mask: broadcastable to (batch, num_heads, length, length), or None.
        dropout: probability of dropping a weight; transformers gives 0 outside training.
        scaling: factor on the scores.

    Returns:
        The attended values, shape (batch, length, num_heads, head_dim), and None for the weights,
        which are never formed.
    """
    batch, num_heads, length, head_dim = query.shape
    query, key, value = (tensor.transpose(1, 2).flatten(2) for tensor in (query, key, value))
    attended = multi_head_attention(
        query, key, value, num_heads, dropout, attention_mask=attention_mask, scale=scaling
    )
    return attended.view(batch, length, num_heads, head_dim), None


AttentionInterface.register(ATTENTION_NAME, headway_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
