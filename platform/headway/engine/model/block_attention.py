"""Unpadded attention on a CPU: sequences of similar length are attended to together, in padded blocks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from headway.engine.model.dropout import dropout
from headway.engine.model.layout import HeadIndices, SequenceGroup, SequenceLayout

_LONGEST_DENSE = 256
"""Tokens up to which scores are computed whole: the fused kernel only pays off for longer sequences."""


@torch.compiler.disable  # every batch has different blocks
def attend_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: SequenceLayout,
    dropout_probability: float,
    window: int | None,
    scale: float | None,
) -> Tensor:
    """Attention within each sequence of a row; see `attention.attend_unpadded`."""
    num_heads = query.size(1)
    indices = layout.head_indices(num_heads)
    sizes = [group.count * num_heads * group.longest for group in layout.groups]
    # (tokens, num_heads, head_dim) → for each group (count * num_heads * longest, head_dim)
    blocks = [_ToBlocks.apply(tensor.flatten(0, 1), indices).split(sizes) for tensor in (query, key, value)]
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
    # (count, num_heads, longest, head_dim) of each group → (tokens * num_heads, head_dim)
    rows = _FromBlocks.apply(torch.cat([block.flatten(0, 2) for block in attended]), indices)
    return rows.view(len(query), -1)


class _ToBlocks(torch.autograd.Function):
    """Copies the heads of all tokens from the row into the groups' blocks.

    Padding repeats tokens, but is masked or left out later. So its gradient is zero, and only the gradients
    of real positions count.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, indices: HeadIndices) -> Tensor:
        ctx.scatter = indices.scatter
        return rows.index_select(0, indices.gather)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.scatter), None


class _FromBlocks(torch.autograd.Function):
    """Copies the real positions of the groups' blocks back into the row."""

    @staticmethod
    def forward(ctx: Any, blocks: Tensor, indices: HeadIndices) -> Tensor:
        ctx.scatter, ctx.num_rows = indices.scatter, len(blocks)
        return blocks.index_select(0, indices.scatter)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        blocks = gradient.new_zeros(ctx.num_rows, gradient.size(1))
        return blocks.index_copy_(0, ctx.scatter, gradient), None


def _windowed(group: SequenceGroup, window: int | None, device: torch.device) -> Tensor | None:
    """The group's mask, (count or 1, 1, 1 or longest, longest), which also hides keys outside the window."""
    if window is None or group.longest <= window:
        return group.key_mask
    positions = torch.arange(group.longest, device=device)
    near = ((positions[:, None] - positions).abs() < window)[None, None]
    if group.key_mask is None:
        return near
    # A query that is padding must see some key, or softmax would make its row NaN.
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
        The attended values, of the same shape.
    """
    query, key, value = block
    mask = _windowed(group, window, query.device)
    if group.longest > _LONGEST_DENSE:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout_probability, scale=scale
        )
    # On a CPU the fused kernel only pays off for long sequences: 16 sequences of 126 tokens in 4 heads,
    # forward and backward, in bf16, on 1 core, take 33 ms fused, and 14 ms by these products.
    count, num_heads, longest, head_dim = query.shape
    bias = query.new_zeros(())
    if mask is not None:
        bias = query.new_zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        # (count or 1, 1, 1 or longest, longest) → (count * num_heads, 1 or longest, longest)
        bias = bias.expand(count, num_heads, -1, longest).reshape(count * num_heads, -1, longest)
    scale = head_dim**-0.5 if scale is None else scale
    # (count * num_heads, longest, head_dim) x (count * num_heads, head_dim, longest)
    scores = torch.baddbmm(bias, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scale)
    # Softmax in bf16 is slow for rows whose length does not fill the CPU's registers. For 16 x 12 heads, on 1
    # core, 30 tokens take 0.95 ms instead of 0.17 ms in float32, and 126 tokens 5.2 ms instead of 1.9 ms. In
    # training there is no gain, because of what is kept for backward.
    exact = scores.dtype if scores.requires_grad else torch.promote_types(scores.dtype, torch.float32)
    weights = dropout(scores.softmax(-1, dtype=exact).to(value.dtype), dropout_probability)
    # (count * num_heads, longest, head_dim) → (count, num_heads, longest, head_dim)
    return torch.bmm(weights, value.flatten(0, 1)).unflatten(0, (count, num_heads))
