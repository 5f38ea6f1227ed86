"""WordPiece tokenizers with fewer tokens, against the whole one."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from headway.config.base import ConfigError
from headway.data.corpus.tokenizer import load_tokenizer, tokenize, train_tokenizer
from headway.data.corpus.vocabulary import most_used_tokens, smaller_tokenizer


@pytest.fixture(scope="module")
def tokenizer(texts):
    return train_tokenizer(texts, vocab_size=300, lowercase=True, max_length=64)


def test_texts_that_use_only_kept_tokens_are_read_as_before(tokenizer, texts):
    kept = most_used_tokens(tokenizer, texts[:20])
    assert len(kept) < len(tokenizer)
    smaller = smaller_tokenizer(tokenizer, kept)
    for text in texts[:20]:
        assert smaller.tokenize(text) == tokenizer.tokenize(text)
        assert [kept[new] for new in smaller(text)["input_ids"]] == tokenizer(text)["input_ids"]


def test_other_words_fall_into_shorter_pieces_and_none_is_lost(tokenizer, texts):
    always = most_used_tokens(tokenizer, [])
    smaller = smaller_tokenizer(tokenizer, most_used_tokens(tokenizer, texts, len(always) + 10))
    assert len(smaller) == len(always) + 10
    spelt = smaller_tokenizer(tokenizer, always)
    for text in texts[:20]:
        pieces = smaller.tokenize(text)
        assert "[UNK]" not in pieces
        assert tokenizer.convert_tokens_to_string(pieces) == text.lower()
        assert len(tokenizer.tokenize(text)) < len(pieces) < len(spelt.tokenize(text))


def test_those_used_most_stay_then_the_first_of_the_others(tokenizer):
    always = most_used_tokens(tokenizer, [])
    assert most_used_tokens(tokenizer, ["rose"], len(tokenizer)) == list(range(len(tokenizer)))
    rose = tokenizer.convert_tokens_to_ids("rose")
    first = next(number for number in range(len(tokenizer)) if number not in [*always, rose])
    kept = most_used_tokens(tokenizer, ["rose"], len(always) + 2)
    assert kept == sorted([*always, rose, first])
    kept = most_used_tokens(tokenizer, ["boat boat rose", "rose soup boat"], len(always) + 2)
    assert set(tokenizer.convert_ids_to_tokens(sorted(set(kept) - set(always)))) == {"boat", "rose"}


def test_a_saved_one_is_a_tokenizer_of_transformers(tokenizer, texts, tmp_path):
    smaller = smaller_tokenizer(tokenizer, most_used_tokens(tokenizer, texts[:20]))
    smaller.save_pretrained(tmp_path)
    for opened in (AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert opened.get_vocab() == smaller.get_vocab()
        assert opened.model_max_length == tokenizer.model_max_length
        assert opened.convert_ids_to_tokens(opened("cook", "soup")["input_ids"]) == (
            ["[CLS]", "cook", "[SEP]", "soup", "[SEP]"]
        )
        assert opened.mask_token_id == opened.convert_tokens_to_ids("[MASK]")
        assert [row.tolist() for row in tokenize(opened, ["cook"])] == [
            [opened.convert_tokens_to_ids("cook")]
        ]


def test_sizes_that_cannot_be_and_other_kinds_of_tokenizer_are_refused(tokenizer, texts):
    least = len(most_used_tokens(tokenizer, []))
    for size in (least - 1, len(tokenizer) + 1):
        with pytest.raises(ConfigError, match=f"^vocabulary: {size} is not allowed; .* {least} must"):
            most_used_tokens(tokenizer, texts, size)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(ConfigError, match=r"^vocabulary: tokens of a BPE tokenizer cannot be dropped"):
        most_used_tokens(words, texts)
