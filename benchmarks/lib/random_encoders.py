"""Encoders with random weights in a folder, and texts of a fixed number of tokens for them."""

from __future__ import annotations

import itertools
import string
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

TEXT_TOKENS = 80
_WORDS = ["".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3)]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_random_encoder(folder: Path, config: BertConfig) -> Path:
    """Save a BERT of a shape, with a WordPiece tokenizer whose every word is one token."""
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    vocabulary = {word: number for number, word in enumerate([*_SPECIAL, *_WORDS])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    ).save_pretrained(folder)
    return folder


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of `TEXT_TOKENS` tokens each, the two special ones included."""
    words = np.random.default_rng(seed).choice(_WORDS, (count, TEXT_TOKENS - 2))
    return [" ".join(row) for row in words]
