"""Count the useful FLOPs of a training step: without padding, and without scores that are not needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headway.data.batch import Batch


@dataclass(frozen=True)
class TrainingFlops:
    """FLOPs of the matrix products of a forward and a backward pass over a batch.

    For each row, a linear layer of n weights costs 2n forward and 4n backward (Kaplan et al. 2020, section
    2.1). Attention over a sequence of length L costs 4 L^2 hidden_size in each layer forward. The trunk runs
    on every token, a vocabulary head on the masked tokens, and any other head and the pooler on every
    sequence.

    Attributes:
        trunk_weights: weights of linear layers that run on every token.
        head_weights: weights of those that run on masked tokens, or on sequences if no token is masked.
        pooled_weights: weights of those that run on sequences.
        attention_width: hidden_size, summed over all layers.
    """

    trunk_weights: int = 0
    head_weights: int = 0
    pooled_weights: int = 0
    attention_width: int = 0

    @classmethod
    def of(cls, objective: nn.Module) -> TrainingFlops:
        """Count the weights of an objective's transformers model; all are 0 if it has none."""
        model: Any = next((part for part in objective.modules() if isinstance(part, PreTrainedModel)), None)
        if model is None:
            return cls()
        encoder, config = model.base_model, model.config
        pooler = getattr(encoder, "pooler", None)
        pooled_weights = _linear_weights(pooler) if pooler is not None else 0
        encoder_weights = _linear_weights(encoder)
        return cls(
            encoder_weights - pooled_weights,
            _linear_weights(model) - encoder_weights,
            pooled_weights,
            config.hidden_size * config.num_hidden_layers,
        )

    def of_batch(self, batch: Batch) -> float:
        """FLOPs of a batch, which is on the host, without padding."""
        sequences, masked = len(batch.lengths), len(batch.masked_positions)
        squared_lengths = float(batch.lengths.to(torch.float64).square().sum())
        forward = (
            2.0 * self.trunk_weights * float(batch.lengths.sum())
            + 2.0 * self.head_weights * (masked or sequences)
            + 2.0 * self.pooled_weights * sequences
            + 4.0 * squared_lengths * self.attention_width
        )
        return 3.0 * forward


def _linear_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
