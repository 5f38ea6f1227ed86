"""Tokenizers: trained, loaded, and applied as transformers applies them."""

from __future__ import annotations

import numpy as np
import pytest

from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import (
    extend_tokenizer,
    load_tokenizer,
    tokenize,
    train_tokenizer,
)


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


RARE = {"breadmast": 3, "hedgerows": 7, "photograph": 2, "zyxgloop": 4}
"""Words that the tokenizer splits, and one with letters that it does not know; how often each occurs."""


@pytest.fixture
def extended(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    return load_tokenizer(tmp_path)


def added_to(tokenizer, extended) -> set[str]:
    return set(extended.get_vocab()) - set(tokenizer.get_vocab())


@pytest.mark.parametrize("words", range(1, 5))
def test_the_words_that_cost_most_pieces_become_tokens_of_their_own(words, tokenizer, extended):
    """How often a word occurs, times the tokens that it would save; a letter each, if it is not known."""
    texts = [f"The {word}, the BOAT! {word.upper()}" for word in RARE] + ["the boat; the mast"] * 9
    texts += [word.capitalize() for word, count in RARE.items() for _ in range(count - 2)]
    assert tokenizer.tokenize("zyxgloop") == ["[UNK]"]
    saved = {word: count * (len(tokenizer.tokenize(word)) - 1) for word, count in RARE.items()}
    saved["zyxgloop"] = 4 * (len("zyxgloop") - 1)
    assert sorted(saved.values()) == [6, 14, 28, 28]
    best = sorted(RARE, key=lambda word: (-saved[word], word))[:words]
    extend_tokenizer(extended, texts, words)
    assert added_to(tokenizer, extended) == set(best)
    assert len(extended) == len(tokenizer) + words
    for word in RARE:
        pieces = [word] if word in best else tokenizer.tokenize(word)
        assert extended.tokenize(f"the {word.upper()}. The") == ["the", *pieces, ".", "the"]
    # All other ids stand for what they stood for.
    known = "The sailor steers the boat."
    assert extended(known)["input_ids"] == tokenizer(known)["input_ids"]


def test_an_added_word_is_not_found_inside_of_others(tokenizer, extended):
    extend_tokenizer(extended, ["photograph"] * 3, words=1)
    assert extended.tokenize("photograph") == ["photograph"]
    assert extended.tokenize("photographs") == tokenizer.tokenize("photographs")


def test_no_more_words_are_added_than_the_texts_have_split_ones(tokenizer, extended):
    extend_tokenizer(extended, ["The boat and a breadmast."], words=500)
    assert added_to(tokenizer, extended) == {"and", "breadmast"}


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds none"):
        load_tokenizer(tmp_path)
