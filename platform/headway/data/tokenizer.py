"""Train a WordPiece tokenizer on a corpus, or take one that exists."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from headway.config import ConfigError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_CHUNK = 4096


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """A BERT tokenizer whose WordPiece vocabulary (Schuster and Nakajima 2012) is learnt from `texts`.

    Args:
        texts: what to learn from; gone through once.
        vocab_size: entries at most, special tokens included.
        lowercase: fold case and strip accents.
        max_length: recorded as the longest input, in tokens.
    """
    wordpiece = BertWordPieceTokenizer(lowercase=lowercase)
    wordpiece.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    return BertTokenizerFast(
        vocab=wordpiece.get_vocab(), do_lower_case=lowercase, model_max_length=max_length
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder.

    Raises:
        ConfigError: no tokenizer there, or one without the special tokens that encoders need.
    """
    if not folder.is_dir():
        raise ConfigError(f"tokenizer: {str(folder)!r} is not a folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"tokenizer: {str(folder)!r} holds none: {str(error).splitlines()[0]}") from error
    needed = {"cls_token": tokenizer.cls_token_id, "sep_token": tokenizer.sep_token_id}
    missing = [name for name, token in needed.items() if token is None]
    if missing:
        raise ConfigError(f"tokenizer: {str(folder)!r} has no {' and no '.join(missing)}")
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text without special tokens, int32, computed on all cores.

    The tokenizers library spreads each chunk over threads of its own.
    """
    rows: list[np.ndarray] = []
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        encodings = backend.encode_batch_fast(chunk, add_special_tokens=False)
        rows += [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    return rows


def continuation_table(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Which tokens go on with a word: bool, shape (vocab_size,), True for WordPiece's `##` pieces."""
    table = np.zeros(len(tokenizer), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        table[index] = token.startswith("##")
    return table
