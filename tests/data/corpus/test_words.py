"""Which tokens continue a word: as the tokenizer itself says while it has the text."""

# ruff: noqa: RUF001, letters of other scripts that look like Latin ones

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headway.config.base import ConfigError
from headway.config.pretrain import MaskingConfig
from headway.config.sources import SourceConfig
from headway.data.corpus.sentences import spaced_sentences
from headway.data.corpus.store import open_store, write_store
from headway.data.corpus.tokenizer import tokenize, train_tokenizer
from headway.data.corpus.words import word_table
from headway.data.pretraining.batches import PretrainingBatches
from headway.data.sampling import BatchSizes
from headway.data.sources.documents import read_documents

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
OTHER_SCRIPTS = [
    "Żółć i ćma — „gęś”, 1984 r. (nie-żart!) 😀😃 ok",
    "Дом стоит у реки, а кот — нет; цена 3,50 €.",
    "東京は大きい。人口は1400万人です！「本当」？",
    "안녕하세요 여러분, 2024년입니다.",
    "हिन्दी में लिखा हुआ पाठ।",
    "¿Qué? ¡No! naïve café, ÉCOLE, Ångström",
    "مرحبا بالعالم، 123",
    "it's we'll don't you're we've I'm he'd (sic) [1] a_b http://x.y/z?a=1&b=2 3.14 1,000",
]


@pytest.fixture(scope="module")
def news() -> list[str]:
    """300 articles, with single spaces, as they are tokenised."""
    documents = read_documents(SourceConfig(source="bbc-news"))[:300]
    return [" ".join(document.text.split()) for document in documents]


def byte_level(
    news: list[str], pre_tokenizer: pre_tokenizers.PreTokenizer | None = None
) -> PreTrainedTokenizerBase:
    """A tokenizer built as ModernBERT's is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return trained(tokenizer, news, trainer)


def sentence_piece(news: list[str]) -> PreTrainedTokenizerBase:
    """One built as XLM-RoBERTa's is."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=1200, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    return trained(tokenizer, news, trainer)


def trained(tokenizer: Tokenizer, news: list[str], trainer: trainers.Trainer) -> PreTrainedTokenizerBase:
    tokenizer.train_from_iterator([*news[:200], *OTHER_SCRIPTS * 20] if news else [], trainer)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **names)


MAKE = {
    "ModernBERT's": byte_level,
    "RoBERTa's with a space before": lambda news: byte_level(
        news, pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "digits one by one": lambda news: byte_level(
        news,
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ),
    ),
    "XLM-RoBERTa's": sentence_piece,
    "BERT's": lambda news: train_tokenizer(news[:100], 1200, lowercase=True, max_length=64),
}


def continued(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of a text, and which of them continue a word by the tokenizer's own account."""
    encoding = tokenizer(text, add_special_tokens=False)
    words = np.asarray(encoding.word_ids())
    return np.asarray(encoding["input_ids"]), np.append(False, words[1:] == words[:-1])


@pytest.mark.parametrize("kind", MAKE)
def test_a_token_continues_a_word_if_the_tokenizer_says_so(kind, news):
    tokenizer = MAKE[kind](news)
    table = word_table(tokenizer)
    pieces = 0
    for text in [*news, *OTHER_SCRIPTS]:
        input_ids, expected = continued(tokenizer, text)
        # What is not known is a special token, which masking leaves alone.
        known = input_ids != tokenizer.unk_token_id
        known[1:] &= known[:-1]
        wrong = np.flatnonzero(known & (table.continues(input_ids) != expected))
        assert not [tokenizer.convert_ids_to_tokens(input_ids[at - 3 : at + 2].tolist()) for at in wrong]
        pieces += int(expected.sum())
    assert pieces > 1000


@pytest.mark.parametrize("text", ["東京は大きい", "сколькими", "안녕하세요", "😀😃"])
def test_the_bytes_of_letters_that_a_vocabulary_lacks_are_one_word(text, news):
    tokenizer = byte_level([])
    input_ids = np.asarray(tokenizer(f"it {text} is", add_special_tokens=False)["input_ids"])
    assert len(input_ids) == len(f"it {text} is".encode())
    expected = [*(False, True), *(False, *[True] * len(text.encode())), *(False, True, True)]
    assert word_table(tokenizer).continues(input_ids).tolist() == expected


def test_added_words_are_words(news):
    tokenizer = byte_level(news)
    tokenizer.add_tokens(["foobar"])
    input_ids, expected = continued(tokenizer, "a foobar, unfoobared foobars")
    assert word_table(tokenizer).continues(input_ids).tolist() == expected.tolist()


def test_another_pattern_of_the_pre_tokenizer_is_followed(news):
    apart = pre_tokenizers.Split(Regex(r"\p{L}+|\p{N}| "), "isolated")
    together = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for pattern in (apart, together):
        tokenizer = byte_level(news, pre_tokenizers.Sequence([pattern, after]))
        input_ids, expected = continued(tokenizer, "Rates,(2024)up; it is")
        assert word_table(tokenizer).continues(input_ids).tolist() == expected.tolist()


def test_a_vocabulary_may_have_tokens_that_are_no_text():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(one + other for one in letters for other in letters), "東"]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table = word_table(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    a, middle = names.index("a"), names.index("Ģ")
    # The bytes of "aé", as the token "aÃ" and the rest of the letter.
    assert table.continues(np.asarray([a, a, names.index("aÃ"), middle])).tolist() == [False, *[True] * 3]


def test_a_tokenizer_that_does_not_tell_words_apart_is_refused():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match=r"masking\.whole_words: the tokens of this tokenizer"):
        word_table(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_batches_of_byte_level_tokens_hide_whole_words(news, tmp_path):
    tokenizer = byte_level(news)
    documents = [spaced_sentences(text) for text in news[:40]]
    write_store(tmp_path / "store", [tokenize(tokenizer, document) for document in documents])
    batches = PretrainingBatches(
        open_store(tmp_path / "store"),
        tokenizer,
        max_length=64,
        masking=MaskingConfig(whole_words=True),
        pairs=None,
        batch_sizes=BatchSizes(64),
        seed=0,
    )
    batch = batches.micro_batches(0, 0, 1, 1)[0]
    original = batch.input_ids.clone()
    original[batch.masked_positions] = batch.masked_labels
    hidden = np.zeros(len(original), bool)
    hidden[batch.masked_positions] = True
    starts = np.cumsum(batch.lengths) - np.asarray(batch.lengths)
    several = 0
    for start, length in zip(starts, batch.lengths, strict=True):
        row = slice(int(start) + 1, int(start + length) - 1)  # without [CLS] and [SEP]
        text = tokenizer.decode(original[row], clean_up_tokenization_spaces=False)
        input_ids, expected = continued(tokenizer, text)
        if input_ids.tolist() != original[row].tolist():
            continue  # the row begins or ends within a word
        assert not (expected[1:] & (hidden[row][1:] != hidden[row][:-1])).any()
        several += int((expected & hidden[row]).sum())
    assert several > 20
