"""Losses between what a student and its teacher compute inside: hidden states, and relations of attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.config.compression.distill import DistillConfig
from headway.data.batch import Batch
from headway.engine.distillation.teacher import Inside
from headway.engine.model.layout import SequenceLayout, layout_of_batch
from headway.engine.model.unpadded import encoder_layers

_NOWHERE = -1e4
"""The score of a key that does not exist: its probability is 0, and the logarithm of that is finite."""


class StatesLoss(nn.Module):
    """The weighted losses between hidden states, and between relations.

    Hidden states of another width than the teacher's are brought to it by a product, which is trained.
    """

    def __init__(self, config: DistillConfig, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """Check that both models fit together.

        Raises:
            ConfigError: a model has no layers, the teacher has too few, or the relation heads do not divide
                both widths.
        """
        super().__init__()
        self._hidden, self._relations = config.hidden, config.relations
        widths = [model.config.hidden_size for model in (student, teacher)]
        depths = [model.config.num_hidden_layers for model in (student, teacher)]
        if not all(depths):
            raise ConfigError("distill: hidden and relations compare layers; static embeddings have none")
        self._pairs = taught_layers(*depths)
        self.widening = nn.ModuleList()
        if config.hidden and widths[0] != widths[1]:
            self.widening.extend(nn.Linear(widths[0], widths[1], bias=False) for _ in self._pairs)
        self._heads = config.relation_heads or student.config.num_attention_heads
        if config.relations and any(width % self._heads for width in widths):
            raise ConfigError(
                f"distill.relation_heads: {self._heads} do not divide the hidden sizes of both models, "
                f"{widths[0]} and {widths[1]}"
            )
        self._layer = config.teacher_layer or depths[1]
        if self._layer > depths[1]:
            raise ConfigError(
                f"distill.teacher_layer: {self._layer} is not allowed; the teacher has {depths[1]} layers"
            )

    def forward(self, student: Inside, teacher: Inside, batch: Batch) -> Tensor:
        """The weighted sum, a scalar."""
        losses = []
        if self._hidden:
            for number, (low, high) in enumerate(self._pairs):
                states = student.states[low]
                if len(self.widening):
                    states = self.widening[number](states)
                losses.append(
                    self._hidden / len(self._pairs) * hidden_loss(states, teacher.states[high], batch)
                )
        if self._relations:
            last = len(student.states) - 2  # the states before the last layer are its input
            learnt = projections(student.model, last, student.states[last])
            with torch.no_grad():
                known = projections(teacher.model, self._layer - 1, teacher.states[self._layer - 1])
            losses += [
                self._relations * relation_loss(ours, theirs, batch, self._heads)
                for ours, theirs in zip(learnt, known, strict=True)
            ]
        return torch.stack(losses).sum()


def hidden_loss(student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
    """1 - cosine of hidden states, both (tokens, hidden_size), as a mean over tokens (Sanh et al. 2019).

    Only directions count, since hidden states grow from layer to layer in encoders whose norms come first.
    """
    layout = layout_of_batch(batch)
    losses = 1.0 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)
    return (losses * (layout.owners < layout.num_sequences)).sum() / batch.lengths.sum()


def taught_layers(student: int, teacher: int) -> list[tuple[int, int]]:
    """Which of the teacher's layers each of a student's is like: evenly spaced, the last like the last.

    Of 3 and 6 layers: [(1, 2), (2, 4), (3, 6)], counted from 1, since 0 is the embeddings.
    """
    return [(number, round(number * teacher / student)) for number in range(1, student + 1)]


def projections(model: Any, number: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a layer for its input, (tokens, hidden_size) each.

    ModernBERT's queries and keys are those before they are rotated by their positions.
    """
    layer: Any = encoder_layers(model)[number]
    match model.config.model_type:
        case "distilbert":
            parts = layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin
        case "modernbert":
            query, key, value = layer.attn.Wqkv(layer.attn_norm(hidden)).chunk(3, dim=-1)
            return query, key, value
        case _:
            attention = layer.attention.self
            parts = attention.query, attention.key, attention.value
    query, key, value = (part(hidden) for part in parts)
    return query, key, value


def relation_loss(student: Tensor, teacher: Tensor, batch: Batch, heads: int) -> Tensor:
    """How differently tokens relate to each other (Wang et al. 2021, "MiniLMv2", section 3.1, eq. 4 to 6).

    A head's relations are the softmax of the scaled products of all pairs of tokens of a sequence.

    Args:
        student: queries, keys or values, floating, shape (tokens, width); `heads` divides the width.
        teacher: the same of the teacher, whose width may be another.
        batch: the sequences.
        heads: how many relation heads both are split into, whatever heads their attention has.

    Returns:
        KL(teacher || student), a mean over sequences, heads and the tokens of each sequence.
    """
    layout = layout_of_batch(batch)
    real = torch.arange(batch.longest, device=student.device) < batch.lengths[:, None]
    learnt, known = (_relations(values.float(), layout, heads, real) for values in (student, teacher))
    # (sequences, heads, longest, longest) → (sequences, heads, longest)
    losses = (known.exp() * (known - learnt)).sum(-1)
    of_sequence = (losses * real[:, None]).sum(-1) / batch.lengths[:, None]
    return of_sequence.mean()


def _relations(values: Tensor, layout: SequenceLayout, heads: int, real: Tensor) -> Tensor:
    """Logarithms of relations, (sequences, heads, longest, longest)."""
    split = values.unflatten(-1, (heads, -1))
    rows = len(layout.cu_seqlens) - 1  # one more than there are sequences, if there is padding
    padded = split.new_zeros(rows, layout.longest, *split.shape[1:])
    # (tokens, heads, size) → (sequences, longest, heads, size) → (sequences, heads, longest, size)
    padded = padded.index_put((layout.owners, layout.position_ids), split)[: layout.num_sequences]
    padded = padded.transpose(1, 2)
    scores = padded @ padded.transpose(-1, -2) / split.size(-1) ** 0.5
    return scores.masked_fill(~real[:, None, None, :], _NOWHERE).log_softmax(-1)
