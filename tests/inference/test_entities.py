"""Entities of texts in windows, whatever the windows cut in two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from headway.inference.entities import entities
from headway.inference.tokens import TextTokenizer

LABELS = ["O", "B-PER", "I-PER"]
TEXT = "a Ahab a a Ishmael a a Queequeg a a Starbuck a"
NAMES = ["Ahab", "Ishmael", "Queequeg", "Starbuck"]


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """The folder of a tokenizer that makes a token of each letter, and tells words by spaces."""
    letters = sorted(set(TEXT) - {" "})
    vocabulary = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}
    vocabulary |= {f"{prefix}{letter}": 0 for prefix in ("", "##") for letter in letters}
    vocabulary = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("length", range(10, 30))
def test_a_word_that_a_window_cuts_in_two_is_one_entity(letters, length):
    pieces = TextTokenizer(letters, length).pieces([TEXT], overlong="window")
    assert len(pieces) > 1
    windows = []
    for piece in pieces:
        # A model that takes any token with a capital letter, or inside of a word, for a name.
        names = [token.startswith("##") or token[0].isupper() for token in piece.encoding.tokens]
        names[0] = names[-1] = False
        windows.append((piece, np.eye(3, dtype=np.float32)[np.where(names, 1, 0)]))
    found = entities(TEXT, windows, LABELS)
    assert [entity.text for entity in found] == NAMES
    assert all(TEXT[entity.start : entity.end] == entity.text for entity in found)
