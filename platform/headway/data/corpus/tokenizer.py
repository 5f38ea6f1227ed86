"""Train a WordPiece tokenizer, or load one and add words to it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, BertWordPieceTokenizer
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerBase

from headway.config.base import ConfigError

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_CHUNK = 4096


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, lowercase: bool, max_length: int
) -> PreTrainedTokenizerBase:
    """A BERT tokenizer whose WordPiece vocabulary (Schuster and Nakajima 2012) is trained on `texts`.

    The same texts give the same vocabulary in the same order.

    Args:
        texts: to train on; they are read twice.
        vocab_size: the largest number of entries, including special tokens.
        lowercase: fold case and strip accents.
        max_length: recorded as the longest input, in tokens.
    """
    # The library numbers single-character pieces in the order of a hash table, which changes each time, and
    # breaks ties between merges by these numbers. Pieces that are given first, sorted, have fixed numbers.
    alphabet = _learn_vocabulary(texts, 0, lowercase, SPECIAL_TOKENS).keys() - set(SPECIAL_TOKENS)
    pieces = sorted(piece for piece in alphabet if piece.startswith("##") and len(piece) == 3)
    vocabulary = _learn_vocabulary(texts, vocab_size, lowercase, SPECIAL_TOKENS + pieces)
    return BertTokenizerFast(vocab=vocabulary, do_lower_case=lowercase, model_max_length=max_length)


def _learn_vocabulary(
    texts: Iterable[str], vocab_size: int, lowercase: bool, first: list[str]
) -> dict[str, int]:
    """Token → number: first those of `first`, then characters, then merges up to `vocab_size`."""
    wordpiece = BertWordPieceTokenizer(lowercase=lowercase)
    wordpiece.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, special_tokens=first, show_progress=False
    )
    return wordpiece.get_vocab()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder.

    Raises:
        ConfigError: there is no tokenizer, or it lacks special tokens that encoders need.
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


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A text that is the same for tokenizers whose ids stand for the same tokens."""
    entries = sorted(tokenizer.get_vocab().items())
    return hashlib.blake2b(repr(entries).encode(), digest_size=10).hexdigest()


def extend_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], words: int) -> None:
    """Add the words whose splitting into pieces costs the texts the most tokens.

    A word that the tokenizer does not know at all is lost: it counts as if each character were a piece.
    """
    backend = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        counts.update(re.findall(r"\w+", normal))
    candidates = sorted(counts)
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    rows = tokenize(tokenizer, candidates)
    pieces = [len(word) if unknown in row else len(row) for word, row in zip(candidates, rows, strict=True)]
    saved = {word: counts[word] * (n - 1) for word, n in zip(candidates, pieces, strict=True) if n > 1}
    best = sorted(saved, key=lambda word: (-saved[word], word))[:words]
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in best])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text without special tokens, int32, computed on all cores.

    The tokenizers library spreads each chunk over its own threads.
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
