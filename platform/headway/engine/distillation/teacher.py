"""A teacher that runs beside its student on the same batches, and what both compute inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from headway.data.batch import Batch
from headway.engine.model.heads import vocabulary_logits
from headway.engine.model.unpadded import run_trunk


class Inside(NamedTuple):
    """What a model computed of a batch.

    Attributes:
        model: whose layers it went through.
        states: hidden states before the first layer and after each, floating, (tokens, hidden_size) each.
        last: what comes out of the encoder: the last of the states or, in ModernBERT, its norm.
    """

    model: PreTrainedModel
    states: list[Tensor]
    last: Tensor


class Teacher:
    """A model that is not trained, and is no part of its student's weights.

    Args:
        model: after `made_ours`; it moves to the device and the dtype that its student computes in.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def __deepcopy__(self, _: Any) -> Teacher:
        return self  # a student's copy in half precision has the same teacher

    @torch.no_grad()
    def inside(self, batch: Batch, like: Tensor) -> Inside:
        """What the teacher computes of a batch, on the device and in the dtype of `like`."""
        if next(self.model.parameters()).dtype != like.dtype or self.model.device != like.device:
            self.model.to(like.device, like.dtype)
        states: list[Tensor] = []
        last = run_trunk(
            self.model.base_model,
            batch.input_ids,
            batch.token_type_ids,
            batch.position_ids,
            batch.cu_seqlens,
            batch.longest,
            states=states,
        )
        return Inside(self.model, states, last)

    @torch.no_grad()
    def words(self, inside: Inside, batch: Batch) -> Tensor:
        """Scores of all words for the masked tokens, float32, shape (masked, vocab_size)."""
        return vocabulary_logits(self.model, inside.last.index_select(0, batch.masked_positions)).float()
