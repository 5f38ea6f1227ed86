"""Ways to run an encoder's layers that trade compilation or arithmetic for time or memory."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

_PARTS = ("intermediate", "output", "ffn", "mlp")


def compile_layers(module: nn.Module) -> None:
    """Compile what surrounds attention, for any number of tokens: one compilation serves every batch.

    Attention stays as it is: its shapes change with each batch, and its products need no fusing.
    """
    for parent in module.modules():
        for name, child in parent.named_children():
            if name in _PARTS and not isinstance(child, nn.Linear):
                child.compile(dynamic=True)


def checkpoint_activations(module: nn.Module) -> None:
    """Keep only what enters each layer, and compute the rest again backward (Chen et al. 2016, section 3)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})
            return
