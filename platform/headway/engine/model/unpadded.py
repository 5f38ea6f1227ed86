"""Run a transformers encoder over a row of sequences without padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from headway.config.base import ConfigError
from headway.engine.model.attention import ATTENTION_NAME
from headway.engine.model.layers import Rotation, use_unpadded_forward
from headway.engine.model.layout import SequenceLayout

SUPPORTED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert", "static")
"""Values of `model_type` that `layers` can run."""

_WITHOUT_TOKEN_TYPES = ("distilbert", "modernbert", "static")
_WITHOUT_POSITIONS = ("modernbert", "static")


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse an encoder that cannot run unpadded.

    Raises:
        ConfigError: the message names the kind of model, and the supported ones.
    """
    if config.model_type not in SUPPORTED:
        raise ConfigError(
            f"model: {config.model_type!r} encoders cannot run unpadded; supported: {', '.join(SUPPORTED)}"
        )


def encoder_layers(encoder: Any) -> nn.ModuleList:
    """The layers of an encoder, or of a model around one, lowest first."""
    encoder = encoder.base_model
    match encoder.config.model_type:
        case "modernbert" | "static":
            return encoder.layers
        case "distilbert":
            return encoder.transformer.layer
        case _:
            return encoder.encoder.layer


def run_unpadded(model: PreTrainedModel) -> None:
    """Change a model, in place, to run on unpadded rows; padded ones go through Headway's attention."""
    model.set_attn_implementation(ATTENTION_NAME)
    use_unpadded_forward(encoder_layers(model), model.config.model_type)


def encode_unpadded(
    encoder: Any, input_ids: Tensor, token_type_ids: Tensor, layout: SequenceLayout
) -> Tensor:
    """Run an encoder's trunk over a row of sequences, without computing padding.

    Args:
        encoder: a transformers encoder without heads, after `run_unpadded`.
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,); ignored by encoders without token types.
        layout: the sequences' boundaries in the row.

    Returns:
        The last hidden states, floating, shape (tokens, hidden_size).
    """
    return run_trunk(
        encoder, input_ids, token_type_ids, layout.position_ids, layout.cu_seqlens, layout.longest
    )


def run_trunk(
    encoder: Any,
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    cu_seqlens: Tensor,
    longest: int,
    *,
    layers: Sequence[Callable[..., Tensor]] | None = None,
    seeds: Tensor | None = None,
    states: list[Tensor] | None = None,
) -> Tensor:
    """`encode_unpadded` with arguments that a compiler can trace: tensors and numbers.

    Args:
        encoder: see `encode_unpadded`.
        input_ids: see `encode_unpadded`.
        token_type_ids: see `encode_unpadded`.
        position_ids: see `SequenceLayout`.
        cu_seqlens: see `SequenceLayout`.
        longest: see `SequenceLayout`.
        layers: to run instead of the encoder's own.
        seeds: int64, shape (layers,), from which dropout inside the layers is drawn; see `seeded_dropout`.
        states: gets the hidden states before the first layer and after each.
    """
    layout = SequenceLayout(cu_seqlens, position_ids, longest, len(cu_seqlens) - 1)
    hidden = _embedded(encoder, input_ids, token_type_ids, position_ids)
    rotations = _rotations(encoder, hidden, position_ids)
    run: Any = encoder_layers(encoder) if layers is None else layers
    for number, layer in enumerate(run):
        rotation = rotations.get(getattr(layer, "attention_type", None))
        seed = None if seeds is None else seeds[number]
        if states is not None:
            states.append(hidden)
        hidden = layer(hidden, layout=layout, rotation=rotation, seed=seed)
    if states is not None:
        states.append(hidden)
    return encoder.final_norm(hidden) if hasattr(encoder, "final_norm") else hidden


def _embedded(encoder: Any, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor) -> Tensor:
    """The input of the first layer, (tokens, hidden_size)."""
    arguments: dict[str, Tensor] = {"input_ids": input_ids[None]}
    if encoder.config.model_type not in _WITHOUT_POSITIONS:
        arguments["position_ids"] = (position_ids + _first_position(encoder))[None]
    arguments |= token_type_arguments(encoder.config, token_type_ids)
    embedded = encoder.embeddings(**arguments)[0]
    project = getattr(encoder, "embeddings_project", None)  # of small ELECTRAs
    return embedded if project is None else project(embedded)


def token_type_arguments(config: PreTrainedConfig, token_type_ids: Tensor) -> dict[str, Tensor]:
    """The argument `token_type_ids` for one row, if the encoder takes it."""
    if config.model_type in _WITHOUT_TOKEN_TYPES:
        return {}
    # Encoders with a single type, such as RoBERTa, give it to both segments.
    types = token_type_ids if config.type_vocab_size > 1 else torch.zeros_like(token_type_ids)
    return {"token_type_ids": types[None]}


def _first_position(encoder: Any) -> int:
    """The number of a sequence's first position; RoBERTa and similar encoders count from the padding's."""
    embeddings = encoder.embeddings
    counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts_from_padding else 0


def _rotations(encoder: Any, hidden: Tensor, position_ids: Tensor) -> dict[str | None, Rotation]:
    """Rotary positions by kind of layer; none if an encoder adds positions to its embeddings."""
    if encoder.config.model_type != "modernbert":
        return {}
    kinds = sorted(set(encoder.config.layer_types))
    rotations = {kind: encoder.rotary_emb(hidden, position_ids[None], kind) for kind in kinds}
    return {kind: (cosines[0], _signed(sines[0])) for kind, (cosines, sines) in rotations.items()}


def _signed(sines: Tensor) -> Tensor:
    first, second = sines.chunk(2, dim=-1)
    return torch.cat([-first, second], dim=-1)
