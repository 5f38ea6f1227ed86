"""The arithmetic a training step cannot do without: no padding, no scores of words that are not asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headway.data.batches import Batch


def useful_training_flops(objective: nn.Module, batch: Batch) -> float:
    """FLOPs of the matrix products of a forward and a backward pass over a batch.

    A linear layer of n weights costs 2n a row forward and 4n backward (Kaplan et al. 2020, section 2.1);
    attention over a sequence of length L costs 4 L^2 hidden_size a layer forward. The trunk runs on every
    token, a vocabulary head on the masked ones, any other head and the pooler on every sequence.

    Args:
        objective: holds a transformers model with its heads; one that holds none counts as nothing.
        batch: on any device.
    """
    model: Any = next((part for part in objective.modules() if isinstance(part, PreTrainedModel)), None)
    if model is None:
        return 0.0
    encoder = model.base_model
    pooler = getattr(encoder, "pooler", None)
    pooled_weights = _linear_weights(pooler) if pooler is not None else 0
    encoder_weights = _linear_weights(encoder)
    trunk_weights = encoder_weights - pooled_weights
    head_weights = _linear_weights(model) - encoder_weights
    sequences, masked = len(batch.lengths), len(batch.masked_places)
    config = model.config
    squared_lengths = float(batch.lengths.to(torch.float64).square().sum())
    forward = (
        2.0 * trunk_weights * len(batch.input_ids)
        + 2.0 * head_weights * (masked or sequences)
        + 2.0 * pooled_weights * sequences
        + 4.0 * squared_lengths * config.hidden_size * config.num_hidden_layers
    )
    return 3.0 * forward


def _linear_weights(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
