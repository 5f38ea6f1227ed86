"""Build, load and save encoders: transformers owns their shape, and Headway how they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from headway.config.base import ConfigError
from headway.config.pretrain import ModelConfig, Preset
from headway.engine.formats import static
from headway.engine.formats.packed import unpacked_folder
from headway.engine.model.attention import ATTENTION_NAME
from headway.engine.model.dropout import use_fast_dropout
from headway.engine.model.unpadded import check_supported, run_unpadded

NEW_WEIGHTS = "new_weights"
"""Attribute of a model: the names of the weights that the checkpoint it was loaded from lacked."""

# Turc et al. 2019, "Well-Read Students Learn Better", table 1; Devlin et al. 2018, section 3.
_PRESETS: dict[Preset, dict[str, int]] = {
    "bert-tiny": {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2},
    "bert-mini": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4},
    "bert-small": {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8},
    "bert-medium": {"num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8},
    "bert-base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12},
    "bert-large": {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16},
    # Warner et al. 2024, "Smarter, Better, Faster, Longer", table 4.
    "modernbert-base": {"num_hidden_layers": 22, "hidden_size": 768, "num_attention_heads": 12},
}


def config_for(model: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedConfig:
    """The transformers configuration of an encoder to be trained from scratch with a tokenizer.

    Raises:
        ConfigError: sizes do not fit together.
    """
    if not model.preset.startswith("modernbert"):
        return bert_config(model, len(tokenizer), max_length, tokenizer.pad_token_id)
    shape = _shape(model)
    return ModernBertConfig(
        vocab_size=len(tokenizer),
        intermediate_size=shape["hidden_size"] * 3 // 2,
        max_position_embeddings=max(8192, max_length),
        embedding_dropout=model.dropout,
        mlp_dropout=model.dropout,
        attention_dropout=model.attention_dropout,
        pad_token_id=tokenizer.pad_token_id,
        cls_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        **shape,
    )


def _shape(model: ModelConfig) -> dict[str, int]:
    shape = _PRESETS[model.preset] | model.shape_overrides()
    if shape["hidden_size"] % shape["num_attention_heads"]:
        raise ConfigError(
            f"model.hidden_size: {shape['hidden_size']} is not a multiple of "
            f"num_attention_heads, {shape['num_attention_heads']}"
        )
    return shape


def bert_config(model: ModelConfig, vocab_size: int, max_length: int, pad_token_id: int) -> BertConfig:
    """The transformers configuration of a BERT to be trained from scratch.

    Args:
        model: a preset, and what differs from it.
        vocab_size: rows of the word embedding.
        max_length: tokens of the longest sequence; the encoder has at least 512 positions.
        pad_token_id: the id of the tokenizer's padding token.

    Raises:
        ConfigError: the hidden size is not a multiple of the number of heads.
    """
    shape = _shape(model)
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
    """An encoder with pretraining heads and random weights, which are the same for the same seed."""
    torch.manual_seed(seed)
    if next_sentence:
        return made_ours(BertForPreTraining(config))
    return made_ours(AutoModelForMaskedLM.from_config(config))


def load_pretraining_model(folder: Path, next_sentence: bool, vocab_size: int = 0) -> PreTrainedModel:
    """An encoder saved by transformers, with pretraining heads; heads that it lacks get random weights.

    The names of these weights are kept in the attribute `new_weights`.

    If `vocab_size` is larger than the model's, words are added, each near the mean of the known ones
    (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").

    Raises:
        ConfigError: the folder contains no model, or pairs are wanted and the model is not a BERT.
    """
    config = _from_folder(AutoConfig, folder)
    if next_sentence and config.model_type != "bert":
        raise ConfigError(f"objective: pairs need a BERT; {str(folder)!r} holds a {config.model_type!r}")
    auto_class = BertForPreTraining if next_sentence else AutoModelForMaskedLM
    model = _model_from_folder(auto_class, folder)
    if vocab_size > model.config.vocab_size:
        model.resize_token_embeddings(vocab_size)
    return made_ours(model)


def label_settings(labels: list[str]) -> dict[str, Any]:
    """The names of a head's outputs, as settings of a transformers configuration."""
    id2label = dict(enumerate(labels))
    return {"id2label": id2label, "label2id": {label: index for index, label in id2label.items()}}


def dropout_settings(folder: Path, hidden: float | None, attention: float | None) -> dict[str, float]:
    """Dropouts under the names in a folder's configuration; those that are None are left out."""
    config = _from_folder(AutoConfig, folder)
    wanted = dict.fromkeys(("hidden_dropout_prob", "dropout", "embedding_dropout", "mlp_dropout"), hidden)
    wanted |= dict.fromkeys(("attention_probs_dropout_prob", "attention_dropout"), attention)
    return {name: value for name, value in wanted.items() if value is not None and hasattr(config, name)}


def load_model(
    folder: Path, auto_class: Any, *, random_weights: bool, seed: int, **settings: Any
) -> PreTrainedModel:
    """An encoder with the head of one of transformers' auto classes.

    Args:
        folder: the folder of an encoder saved by transformers, with or without such a head.
        auto_class: `AutoModelFor…`.
        random_weights: take only the shape from the folder, not its weights: a baseline without pretraining.
        seed: for weights that are not taken from the folder.
        **settings: settings of the model's configuration that differ from the folder's.

    Raises:
        ConfigError: the folder contains no model.
    """
    torch.manual_seed(seed)
    if random_weights:
        config = _from_folder(AutoConfig, folder, **settings)
        return made_ours(auto_class.from_config(config))
    # A head for other labels than the folder's gets random weights.
    return made_ours(_model_from_folder(auto_class, folder, ignore_mismatched_sizes=True, **settings))


def load_as_saved(folder: Path) -> PreTrainedModel:
    """The model in a folder, of the class that it was saved from.

    Raises:
        ConfigError: the folder contains no model, or does not say which class of transformers it is.
    """
    names = _from_folder(AutoConfig, folder).architectures or [""]
    kind = model_class(names[0])
    if kind is None:
        raise ConfigError(f"model: {str(folder)!r} has the unknown architecture {names[0]!r}")
    return made_ours(_model_from_folder(kind, folder))


def model_class(architecture: str) -> Any:
    """The class with this name, of transformers or of static embeddings; None if there is none."""
    return getattr(transformers, architecture, None) or getattr(static, architecture, None)


def _model_from_folder(auto_class: Any, folder: Path, **settings: Any) -> Any:
    """A model whose attribute `new_weights` names the weights that the folder lacks, which are random."""
    with unpacked_folder(folder) as plain:
        model, info = _from_folder(auto_class, plain, output_loading_info=True, **settings)
    mismatched = [name for name, *_ in info["mismatched_keys"]]
    setattr(model, NEW_WEIGHTS, frozenset([*info["missing_keys"], *mismatched]))
    return model


def _from_folder(auto_class: Any, folder: Path, **settings: Any) -> Any:
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"model: {str(folder)!r} is not a folder with a transformers model (no config.json)"
        )
    try:
        with quietly():
            return auto_class.from_pretrained(folder, local_files_only=True, **settings)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model: {str(folder)!r} cannot be loaded: {str(error).splitlines()[0]}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' progress bars, and its report of new heads, which are intended."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def made_ours(model: PreTrainedModel) -> PreTrainedModel:
    """A model of transformers, changed in place to run as Headway runs it.

    Raises:
        ConfigError: it is an encoder that cannot run unpadded.
    """
    check_supported(model.config)
    use_fast_dropout(model)
    run_unpadded(model)
    return model


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save weights (safetensors) and configuration in transformers' format, readable without Headway.

    Static embeddings, which transformers does not know, are readable by sentence-transformers.
    """
    model.set_attn_implementation("sdpa")
    try:
        with quietly():
            model.save_pretrained(folder)
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    if model.config.model_type == static.MODEL_TYPE:
        static.write_sentence_files(folder)
