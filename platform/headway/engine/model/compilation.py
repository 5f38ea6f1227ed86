"""Compile an encoder, or checkpoint its activations: trade compilation or arithmetic for time or memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SHORTEST_RUN = 300
"""Steps from which compiling on a GPU pays off: it takes 10 to 30 s, and saves a tenth to a third a step."""
COMPILED_PARTS = ("trunk", "word_loss")
"""Functions of an objective to compile, each as one graph for any number of tokens."""

SEEDED = "is_seeded"
"""Attribute: whether an objective draws dropout from seeds, which only pays off compiled for a GPU."""


def is_worth_compiling(device: torch.device, total_steps: int) -> bool:
    """Whether a run gains by compiling; on a CPU few do."""
    return device.type != "cpu" and total_steps >= SHORTEST_RUN


def compile_model(module: nn.Module, *, by_layer: bool) -> None:
    """Compile an objective's trunk and its loss over words, in place.

    Args:
        module: an objective, or a module that contains one.
        by_layer: compile each layer, all to the same code, instead of the trunk as one graph. This is needed
            if gradients are averaged while backward continues, or if hooks gather a layer's weights.
    """
    on_gpu = any(parameter.device.type != "cpu" for parameter in module.parameters())
    # On a CPU, attention and dropout are not compiled, but what is between them is.
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
    """Keep only the input of each layer, and recompute the rest in backward (Chen et al. 2016, section 3)."""
    for part in module.modules():
        if isinstance(part, PreTrainedModel) and part.supports_gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})
            return
