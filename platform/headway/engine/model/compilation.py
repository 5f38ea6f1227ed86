"""Ways to run an encoder that trade compilation or arithmetic for time or memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SHORTEST_RUN = 300
"""Steps from which compiling pays on a GPU: it takes 10 to 30 s, and saves a tenth to a third of a step."""
COMPILED_PARTS = ("trunk", "word_loss")
"""Functions of an objective that are compiled, each as one graph for any number of tokens."""

SEEDED = "is_seeded"
"""Whether an objective draws dropout from seeds, which only pays if it is compiled for a GPU."""


def is_worth_compiling(device: torch.device, total_steps: int) -> bool:
    """Whether a run gains by it; on a CPU seldom any does."""
    return device.type != "cpu" and total_steps >= SHORTEST_RUN


def compile_model(module: nn.Module, *, by_layer: bool) -> None:
    """Compile an objective's trunk and its loss over words; in place.

    Args:
        module: an objective, or what holds one.
        by_layer: each layer by itself, all layers by the same code, instead of one graph for the trunk:
            where gradients are to be sent off while backward goes on with the layers below, or hooks gather
            a layer's weights.
    """
    on_gpu = any(parameter.device.type != "cpu" for parameter in module.parameters())
    # Attention and dropout on a CPU are no graph: they stay as they are, and what lies between is compiled.
    settings: dict[str, Any] = {"dynamic": True, "fullgraph": on_gpu}
    for part in module.modules():
        if hasattr(part, SEEDED):
            setattr(part, SEEDED, on_gpu)
        if by_layer and hasattr(part, "runs_unpadded"):
            part.forward = torch.compile(part.forward, **settings)
        for name in COMPILED_PARTS:
            if hasattr(part, name) and not (by_layer and name == "trunk"):
                setattr(part, name, torch.compile(getattr(part, name), **settings))


def checkpoint_activations(module: nn.Module) -> None:
    """Keep only what enters each layer, and compute the rest again backward (Chen et al. 2016, section 3)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})
            return
