"""A model cut into stages, one for each worker of a pipeline, which drops what the others compute.

Weights keep the names they have in the whole model, so a saved state knows nothing of stages.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from headway.config.base import ConfigError
from headway.engine.model.unpadded import encoder_layers

_BEHIND_LAYERS = ("pooler", "final_norm")


class Entrance(nn.Module):
    """Stands where the embeddings were, and gives out the hidden states that the stage before sent.

    It keeps those embeddings whose weights a head uses too, for the head's sake.

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
    """Stands where a layer of another stage was; hands hidden states on as they are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # ModernBERT asks each of its layers which.
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """`hidden_states`, of any shape."""
        return hidden_states


def keep_stage(model: PreTrainedModel, stage: int, stages: int) -> None:
    """Drop from a model, in place, all that the other stages compute.

    The first stage has the embeddings, the last one the heads, and each an equal number of layers, or one
    more. Weights that embeddings and a head share lie on both stages.

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
        if hasattr(encoder, "embeddings_project"):  # ELECTRA's, from the embeddings to the layers
            del encoder.embeddings_project
    if not is_last:
        for name in (name for name in _BEHIND_LAYERS if hasattr(encoder, name)):
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
