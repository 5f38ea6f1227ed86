"""Folders of tiny encoders of every kind, with random weights and a tokenizer of a few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_encoders import CONFIGS
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing

from headway.engine.model.encoder import label_settings, load_model
from headway.inference.packing import Pack

HEADS = {
    "embed": "Model",
    "classify": "ModelForSequenceClassification",
    "fill-mask": "ModelForMaskedLM",
    "tokens": "ModelForTokenClassification",
    "answer": "ModelForQuestionAnswering",
}
"""The operation that each head is for, and the end of its automatic class."""
MASK = 4


def save_encoder(folder: Path, kind: str, operation: str) -> Path:
    """Save an encoder with the head that an operation needs."""
    torch.manual_seed(0)
    getattr(transformers, f"Auto{HEADS[operation]}").from_config(CONFIGS[kind]).save_pretrained(folder)
    words = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": MASK}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def save_bert(
    folder: Path,
    tokenizer: transformers.PreTrainedTokenizerBase,
    architecture: str = "BertModel",
    labels: list[str] | None = None,
    seed: int = 0,
    **settings: Any,
) -> transformers.PreTrainedModel:
    """Save a BERT of 2 layers of 32 columns with random weights, and its tokenizer.

    Args:
        folder: where to.
        tokenizer: gives the size of the vocabulary.
        architecture: transformers' class.
        labels: of the head, in their order.
        seed: of the weights.
        **settings: of `BertConfig`.
    """
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if labels is not None:
        shape |= label_settings(labels)
    model = getattr(transformers, architecture)(transformers.BertConfig(**shape | settings)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def random_pack(lengths: list[int], seed: int = 0) -> Pack:
    """Sequences of random tokens, a few of them hidden."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 61, sum(lengths)).astype(np.int32)
    ids[1::9] = MASK
    return Pack(ids, np.zeros(len(ids), np.uint8), np.asarray(lengths, np.int64))


def load_classifier(
    folder: Path, labels: list[str], *, random_weights: bool, seed: int
) -> transformers.PreTrainedModel:
    """The encoder in a folder with a head over these labels, in their order."""
    auto_class = transformers.AutoModelForSequenceClassification
    settings = label_settings(labels)
    return load_model(folder, auto_class, random_weights=random_weights, seed=seed, **settings)
