"""Run a transformers encoder over a row of sequences without padding."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from headway.config.base import ConfigError
from headway.engine.model.layout import SequenceLayout

SUPPORTED = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "modernbert")
"""Values of `model_type` whose layers hand extra keywords through to the attention function."""

_WITHOUT_TOKEN_TYPES = ("distilbert", "modernbert")


def check_supported(config: PreTrainedConfig) -> None:
    """Refuse an encoder that cannot run unpadded.

    Raises:
        ConfigError: names the kind of model, and those that can.
    """
    if config.model_type not in SUPPORTED:
        raise ConfigError(
            f"model: {config.model_type!r} encoders cannot run unpadded; supported: {', '.join(SUPPORTED)}"
        )


def encode_unpadded(
    encoder: Any, input_ids: Tensor, token_type_ids: Tensor, layout: SequenceLayout
) -> Tensor:
    """Run an encoder's trunk over a row of sequences, computing no padding.

    Args:
        encoder: a transformers encoder with Headway's attention, of a supported kind, without heads.
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,); not used by kinds that know none.
        layout: the sequences' boundaries in the row.

    Returns:
        The last hidden states, floating, shape (tokens, hidden_size).
    """
    arguments: dict[str, Any] = {
        "input_ids": input_ids[None],
        "position_ids": (layout.position_ids + _first_position(encoder))[None],
        "layout": layout,
    }
    arguments |= token_type_arguments(encoder.config, token_type_ids)
    if encoder.config.model_type == "modernbert":
        # The layout says who attends to whom; a mask over the whole row would hold tokens² places.
        arguments["attention_mask"] = {"full_attention": None, "sliding_attention": None}
    return encoder(**arguments).last_hidden_state[0]


def token_type_arguments(config: PreTrainedConfig, token_type_ids: Tensor) -> dict[str, Tensor]:
    """The argument `token_type_ids` of one row, for kinds that have it."""
    if config.model_type in _WITHOUT_TOKEN_TYPES:
        return {}
    # Kinds with a single type (RoBERTa) give the second segment the same one.
    return {"token_type_ids": token_type_ids[None] % config.type_vocab_size}


def _first_position(encoder: Any) -> int:
    """Number of a sequence's first position: RoBERTa and its kin count on from the padding's."""
    embeddings = encoder.embeddings
    counts_on = hasattr(embeddings, "create_position_ids_from_input_ids")
    return int(embeddings.padding_idx) + 1 if counts_on else 0
