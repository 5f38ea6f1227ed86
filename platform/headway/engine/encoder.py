"""Build, load, save and run encoders: transformers owns their shape, Headway how they run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from headway.config import ConfigError, ModelConfig, Preset
from headway.engine.attention import ATTENTION_NAME
from headway.engine.layout import SequenceLayout

# Turc et al. 2019, "Well-Read Students Learn Better", table 1; Devlin et al. 2018, section 3.
_PRESETS: dict[Preset, dict[str, int]] = {
    "bert-tiny": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2},
    "bert-mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4},
    "bert-small": {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8},
    "bert-medium": {"num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8},
    "bert-base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16},
}


def bert_config(model: ModelConfig, vocab_size: int, max_length: int, pad_token_id: int) -> BertConfig:
    """The transformers configuration of a BERT to be trained from scratch.

    Args:
        model: a preset, and what departs from it.
        vocab_size: rows of the word embedding.
        max_length: positions the encoder must know, in tokens; at least the preset's 512.
        pad_token_id: the tokenizer's padding.

    Raises:
        ConfigError: a hidden size that does not split into the heads.
    """
    shape = _PRESETS[model.preset] | model.shape_overrides()
    if shape["hidden_size"] % shape["num_attention_heads"]:
        raise ConfigError(
            f"model.hidden_size: {shape['hidden_size']} is not a multiple of "
            f"num_attention_heads, {shape['num_attention_heads']}"
        )
    return BertConfig(
        vocab_size=vocab_size,
        intermediate_size=4 * shape["hidden_size"],
        max_position_embeddings=max(512, max_length),
        hidden_dropout_prob=model.dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        pad_token_id=pad_token_id,
        **shape,
    )


def new_pretraining_model(config: PreTrainedConfig, next_sentence: bool, seed: int) -> PreTrainedModel:
    """A BERT with its pretraining heads and random weights, the same for the same seed."""
    model_class = BertForPreTraining if next_sentence else BertForMaskedLM
    torch.manual_seed(seed)
    return _with_headway_attention(model_class(config))


def load_pretraining_model(folder: Path, next_sentence: bool) -> PreTrainedModel:
    """An encoder saved by transformers, with pretraining heads; those it lacks start at random.

    Raises:
        ConfigError: the folder holds no model.
    """
    model_class = AutoModelForPreTraining if next_sentence else BertForMaskedLM
    return _with_headway_attention(_from_folder(model_class, folder))


def load_classifier(folder: Path, labels: list[str], *, random_weights: bool, seed: int) -> PreTrainedModel:
    """An encoder with a classification head over `labels`, in their order.

    Args:
        folder: where transformers saved an encoder, with or without such a head.
        labels: class names; the head's outputs.
        random_weights: take the shape from the folder, and no weight: the baseline without pretraining.
        seed: of every weight the folder does not give.

    Raises:
        ConfigError: the folder holds no model.
    """
    id2label = dict(enumerate(labels))
    settings = {"id2label": id2label, "label2id": {label: i for i, label in id2label.items()}}
    torch.manual_seed(seed)
    if random_weights:
        config = _from_folder(AutoConfig, folder, num_labels=len(labels), **settings)
        return _with_headway_attention(AutoModelForSequenceClassification.from_config(config))
    return _with_headway_attention(_from_folder(AutoModelForSequenceClassification, folder, **settings))


def _from_folder(auto_class: Any, folder: Path, **settings: Any) -> Any:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model: {str(folder)!r} is not a folder with a transformers model (no config.json)"
        )
    try:
        return auto_class.from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


def _with_headway_attention(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation(ATTENTION_NAME)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Write weights (safetensors) and configuration in transformers' format, readable without Headway."""
    model.set_attn_implementation("sdpa")
    try:
        model.save_pretrained(folder)
    finally:
        model.set_attn_implementation(ATTENTION_NAME)


def encode_unpadded(
    encoder: nn.Module, input_ids: Tensor, token_type_ids: Tensor, layout: SequenceLayout
) -> Tensor:
    """Run an encoder's trunk over a row of sequences, computing no padding.

    Args:
        encoder: a transformers encoder with Headway's attention (`BertModel`).
        input_ids: int64, shape (tokens,).
        token_type_ids: int64, shape (tokens,).
        layout: the sequences' boundaries in the row.

    Returns:
        The last hidden states, floating, shape (tokens, hidden_size).
    """
    output = encoder(
        input_ids=input_ids[None],
        token_type_ids=token_type_ids[None],
        position_ids=layout.position_ids[None],
        layout=layout,
    )
    return output.last_hidden_state[0]


def pool_first_tokens(encoder: Any, hidden_states: Tensor, layout: SequenceLayout) -> Tensor:
    """The encoder's pooler on the [CLS] of each sequence.

    Args:
        encoder: a transformers encoder with a pooler.
        hidden_states: floating, shape (tokens, hidden_size).
        layout: the sequences' boundaries in the row.

    Returns:
        Floating, shape (sequences, hidden_size).
    """
    first = hidden_states.index_select(0, layout.first_tokens)
    return encoder.pooler(first[:, None])
