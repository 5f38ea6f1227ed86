"""Frames of texts and pairs, and where pairs are cut, against transformers' own tokenizers."""

from __future__ import annotations

import random

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast

from headway.data.corpus.tokenizer import tokenize
from headway.data.framing import Framing, cut_longest_first


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(["a few words of text"] * 3, vocab_size=300, special_tokens=special)
    folder = tmp_path_factory.mktemp("roberta")
    trainer.save_model(str(folder))
    return RobertaTokenizerFast.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_framed_pair_equals_the_tokenizers_own_whatever_is_cut(kind, corpus, roberta):
    tokenizer = corpus.tokenizer if kind == "bert" else roberta
    framing = Framing.of(tokenizer)
    rng = random.Random(0)
    for _ in range(300):
        first, second = (" ".join(["a"] * rng.randint(1, 30)) for _ in range(2))
        longest = rng.randint(8, 50)
        expected = tokenizer(
            first, second, truncation="longest_first", max_length=longest, return_token_type_ids=True
        )
        tokens = tokenize(tokenizer, [first, second])
        kept = cut_longest_first(len(tokens[0]), len(tokens[1]), longest - framing.pair)
        ids, types = framing.two(tokens[0][: kept[0]], tokens[1][: kept[1]])
        assert ids.tolist() == expected["input_ids"]
        if kind == "bert":
            assert types.tolist() == expected["token_type_ids"]


def test_a_framed_text_equals_the_tokenizers_own(corpus, roberta):
    for tokenizer in (corpus.tokenizer, roberta):
        [tokens] = tokenize(tokenizer, ["a few words"])
        assert Framing.of(tokenizer).one(tokens)[0].tolist() == tokenizer("a few words")["input_ids"]
