"""Cut a model into stages, one for each worker of a pipeline, by dropping what other stages compute.

Weights keep the names that they have in the whole model, so saved states do not depend on stages.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.engine.model.unpadded import encoder_layers

_AFTER_LAYERS = ("pooler", "final_norm")


class Entrance(nn.Module):
    """Replaces the embeddings, and returns the hidden states that the previous stage sent.

    Embeddings whose weights a head uses too are kept for the head.

    Attributes:
        states: floating, shape (tokens, hidden_size); set before each forward pass.
    """

    states: Tensor

    def __init__(self, embeddings: nn.Module, kept: set[int]) -> None:
        super().__init__()
        for name, child in embeddings.named_children():
            if any(id(parameter) in kept for parameter in child.parameters()):
                self.add_module(name, child)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """The states as a batch of one row."""
        return self.states[None]


class PassedOn(nn.Module):
    """Replaces a layer of another stage, and returns hidden states unchanged."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # ModernBERT reads this of each of its layers.
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """`hidden_states`, of any shape."""
        return hidden_states


def keep_stage(model: PreTrainedModel, stage: int, stages: int) -> None:
    """Drop everything that other stages compute from a model, in place.

    The first stage has the embeddings, the last one has the heads, and all have equally many layers, or one
    more. Weights that embeddings and a head share are on both of these stages.

    Raises:
        ConfigError: there are more stages than layers.
    """
    encoder, layers = model.base_model, encoder_layers(model)
    if stages > len(layers):
        raise ConfigError(f"parallel.pipeline: {stages} stages need as many layers; there are {len(layers)}")
    mine = range(stage * len(layers) // stages, (stage + 1) * len(layers) // stages)
    for number, layer in enumerate(layers):
        if number not in mine:
            layers[number] = PassedOn(layer)
    is_last = stage == stages - 1
    if stage > 0:
        encoder.embeddings = Entrance(encoder.embeddings, _in_heads(model) if is_last else set())
        if hasattr(encoder, "embeddings_project"):  # ELECTRA's projection of embeddings for the layers
            del encoder.embeddings_project
    if not is_last:
        for name in (name for name in _AFTER_LAYERS if hasattr(encoder, name)):
            setattr(encoder, name, nn.Identity())
        for name, _ in _heads(model):
            setattr(model, name, nn.Identity())


def names_on_both_ends(model: PreTrainedModel) -> list[str]:
    """Names of the weights of a whole model that embeddings and a head share."""
    shared = _in_heads(model)
    embeddings = {id(parameter) for parameter in model.base_model.embeddings.parameters()}
    return [name for name, p in model.named_parameters() if id(p) in shared & embeddings]


def _heads(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    if model.base_model is model:
        return []
    return [(name, child) for name, child in model.named_children() if child is not model.base_model]


def _in_heads(model: PreTrainedModel) -> set[int]:
    return {id(parameter) for _, head in _heads(model) for parameter in head.parameters()}
