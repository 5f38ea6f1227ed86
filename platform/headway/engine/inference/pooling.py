"""The tokens of each sequence pooled into one vector, in each way that sentence-transformers knows."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from headway.engine.model.heads import mean_pooled
from headway.engine.model.layout import SequenceLayout

Pooling = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def pooled(hidden_states: Tensor, layout: SequenceLayout, pooling: Pooling) -> Tensor:
    """One vector for each sequence.

    Args:
        hidden_states: floating, shape (tokens, hidden_size).
        layout: the sequences' boundaries in the row.
        pooling: `cls` and `lasttoken` take the first and the last token; `max` the largest number in each
            column; `mean` the mean, `mean_sqrt_len_tokens` the sum divided by the square root of the length,
            and `weightedmean` a mean in which the n-th token counts n times (Muennighoff 2022, "SGPT",
            section 4.1).

    Returns:
        Floating, shape (sequences, hidden_size).
    """
    match pooling:
        case "cls":
            return hidden_states.index_select(0, layout.first_tokens)
        case "lasttoken":
            return hidden_states.index_select(0, layout.first_tokens + layout.lengths - 1)
        case "max":
            return _largest(hidden_states, layout)
        case "mean":
            return mean_pooled(hidden_states, layout)
        case "mean_sqrt_len_tokens":
            return mean_pooled(hidden_states, layout) * layout.lengths[:, None].sqrt()
        case "weightedmean":
            weights = (layout.position_ids + 1).to(hidden_states.dtype)[:, None]
            return mean_pooled(hidden_states * weights, layout) / mean_pooled(weights, layout)


def _largest(hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    sequences = len(layout.cu_seqlens) - 1  # one more than count, if padding fills the row up
    lowest = hidden_states.new_full((sequences, hidden_states.size(1)), float("-inf"))
    owners = layout.owners[:, None].expand_as(hidden_states)
    return lowest.scatter_reduce(0, owners, hidden_states, "amax")[: layout.num_sequences]
