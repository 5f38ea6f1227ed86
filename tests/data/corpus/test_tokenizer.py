"""Tokenizers: trained, loaded, and applied as transformers applies them."""

from __future__ import annotations

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import load_tokenizer, tokenize, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=200, lowercase=True, max_length=64)


def test_the_vocabulary_keeps_to_its_size_and_holds_what_berts_need(tokenizer):
    assert len(tokenizer) <= 200
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.model_max_length == 64


def test_frequent_words_become_tokens_of_their_own(tokenizer):
    assert tokenizer.tokenize("The sailor steers the boat.") == [
        "the",
        "sailor",
        "steers",
        "the",
        "boat",
        ".",
    ]


def test_case_is_folded_only_when_asked(texts):
    cased = train_tokenizer(texts, vocab_size=200, lowercase=False, max_length=64)
    assert cased.tokenize("The boat") == ["The", "boat"]


def test_ids_equal_those_of_transformers(tokenizer, texts):
    several = [*texts[:30], "unseen words & 東京!", ""]
    for row, text in zip(tokenize(tokenizer, several), several, strict=True):
        assert row.dtype == np.int32
        assert row.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_texts_are_not_cut(tokenizer):
    [row] = tokenize(tokenizer, ["boat " * 5000])
    assert len(row) == 5000


def test_the_same_texts_give_the_same_vocabulary(texts):
    for size in (200, 90):  # a smaller one cuts through merges that are equally frequent
        one, other = (train_tokenizer(texts, size, lowercase=True, max_length=64) for _ in range(2))
        assert one.get_vocab() == other.get_vocab()


def test_a_saved_tokenizer_loads_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("Old boats at dawn")["input_ids"] == tokenizer("Old boats at dawn")["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds none"):
        load_tokenizer(tmp_path)
