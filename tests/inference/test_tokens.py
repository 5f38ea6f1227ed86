"""Texts that are cut before they are encoded: the pieces are those of the whole text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from headway.data.corpus.tokenizer import train_tokenizer
from headway.inference.tokens import RequestTooLargeError, TextTokenizer, TextTooLongError, TokenBudget

WORDS = ["the", "sailor", "[MASK]", "Straße", "été", "x" * 150, "\u4e2d\u6587", " " * 300, "\n", "!?", "[CLS"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def wordpiece() -> Tokenizer:
    return train_tokenizer([" ".join(WORDS)] * 5, 200, lowercase=True, max_length=32).backend_tokenizer


def byte_pairs() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        WORDS * 5, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return framed(backend)


def unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(
        WORDS * 5, trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token="[UNK]")
    )
    return framed(backend)


def framed(backend: Tokenizer) -> Tokenizer:
    """A tokenizer that adds [CLS] and [SEP]."""
    ids = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return backend


@pytest.fixture(params=[wordpiece, byte_pairs, unigram])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> TextTokenizer:
    request.param().save(str(tmp_path / "tokenizer.json"))
    return TextTokenizer(tmp_path, 32)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer) -> list[int]:
    """The lengths of all texts that are encoded."""
    lengths: list[int] = []
    backend = tokenizer.backend

    class Watched:
        def __getattr__(self, name):
            return getattr(backend, name)

        def encode_batch(self, texts, **settings):
            lengths.extend(map(len, texts))
            return backend.encode_batch(texts, **settings)

    tokenizer.backend = Watched()  # type: ignore[assignment]
    return lengths


def mixed_texts() -> list[str]:
    rng = random.Random(3)
    return ["".join(rng.choice(WORDS) + " " * rng.randint(0, 1) for _ in range(200)) for _ in range(60)]


def test_what_is_cut_early_has_the_tokens_of_the_whole_text(tokenizer):
    backend: Tokenizer = tokenizer.backend
    for text in mixed_texts():
        (piece,) = tokenizer.pieces([text])
        whole = backend.encode(text, add_special_tokens=False)
        whole.truncate(30)
        expected = backend.post_process(whole)
        assert piece.sequence.ids.tolist() == expected.ids
        assert piece.encoding.offsets == expected.offsets and piece.encoding.word_ids == expected.word_ids
    for text in mixed_texts():
        (pair,) = tokenizer.pieces(["Who?"], [text])
        whole, question = (backend.encode(one, add_special_tokens=False) for one in (text, "Who?"))
        whole.truncate(29 - len(question.ids))
        assert pair.sequence.ids.tolist() == backend.post_process(question, whole).ids


def test_a_long_text_is_cut_before_it_is_encoded(tokenizer, encoded):
    long = "the sailor steers the old boat " * 3_000
    tokenizer.pieces([long])
    with pytest.raises(TextTooLongError, match="more than 30 tokens"):
        tokenizer.pieces([long], overlong="reject")
    tokenizer.pieces(["the"] * 3, [long] * 3)
    with pytest.raises(TextTooLongError, match="fills all"):
        tokenizer.pieces([long] * 200, ["a boat"] * 200)
    assert sum(encoded) < 10_000


def test_a_request_has_no_more_tokens_than_its_budget(tokenizer, encoded):
    long = "the sailor steers the old boat " * 3_000
    with pytest.raises(RequestTooLargeError, match="more than 200 tokens"):
        tokenizer.pieces([long], overlong="window", budget=TokenBudget(200))
    with pytest.raises(RequestTooLargeError):
        tokenizer.pieces([long] * 7, budget=TokenBudget(200))
    assert sum(encoded) < 10_000
    assert len(tokenizer.pieces([long] * 6, budget=TokenBudget(200))) == 6
    budget = TokenBudget(64)
    assert [piece.text for piece in tokenizer.pieces([long], budget=budget, first=4)] == [4]
    assert budget.left == 32
