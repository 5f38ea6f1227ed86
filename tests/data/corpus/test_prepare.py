"""A prepared corpus: made once, found by its content, held-out texts kept out of what is trained."""

from __future__ import annotations

import json

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizerFast

from headway.config.base import ConfigError
from headway.config.corpus import CorpusConfig
from headway.data.corpus.corpus import open_corpus
from headway.data.corpus.prepare import prepare_corpus, read_splits


@pytest.fixture
def config(labelled_file) -> CorpusConfig:
    return CorpusConfig(source=str(labelled_file), vocab_size=300, max_length=32)


def test_the_stores_hold_the_texts_of_their_side(config, tmp_path):
    train, held_out, _ = read_splits(config)
    corpus = prepare_corpus(train, held_out, config, tmp_path)
    for split, documents in (("train", train), ("validation", held_out)):
        store = corpus.store(split)
        assert store.num_documents == len(documents)
        for number, document in enumerate(documents):
            tokens = store.span(store.documents[number], store.documents[number + 1])
            expected = corpus.tokenizer(document.text, add_special_tokens=False)["input_ids"]
            assert tokens.tolist() == expected
        assert corpus.facts["tokens"][split] == len(store.tokens)
        assert store.num_sentences == 6 * len(documents)


def test_byte_level_tokens_of_a_document_are_those_of_its_whole_text(config, texts, tmp_path):
    """In running text a sentence's first word follows a space, which changes its token."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(
        texts, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False
    )
    trainer.save_model(str(tmp_path))
    RobertaTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path / "tokenizer")
    config = config.model_copy(update={"tokenizer": tmp_path / "tokenizer"})
    train, held_out, _ = read_splits(config)
    corpus = prepare_corpus(train, held_out, config, tmp_path)
    store = corpus.store("train")
    for number, document in enumerate(train):
        tokens = store.span(store.documents[number], store.documents[number + 1])
        assert tokens.tolist() == corpus.tokenizer(document.text, add_special_tokens=False)["input_ids"]


def test_duplicates_are_dropped_and_counted(config, labelled_file, tmp_path):
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text(labelled_file.read_text() * 2)
    train, held_out, duplicates = read_splits(config.model_copy(update={"source": str(doubled)}))
    assert duplicates == 120
    assert (train, held_out) != ([], [])
    assert not {d.text for d in train} & {d.text for d in held_out}


def test_the_tokenizer_learns_from_the_training_texts_alone(config, tmp_path):
    train, held_out, _ = read_splits(config)
    strange = [document._replace(text="zyx zyx zyx zyx zyx") for document in held_out]
    corpus = prepare_corpus(train, strange, config, tmp_path)
    assert "zyx" not in corpus.tokenizer.get_vocab()


def test_the_same_content_is_not_prepared_again(config, tmp_path):
    train, held_out, _ = read_splits(config)
    first = prepare_corpus(train, held_out, config, tmp_path)
    stamp = (first.folder / "corpus.json").stat().st_mtime_ns
    again = prepare_corpus(train, held_out, config, tmp_path)
    assert again.folder == first.folder
    assert (first.folder / "corpus.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "change", [{"vocab_size": 200}, {"max_length": 16}, {"lowercase": False}, {"language": "de"}]
)
def test_another_setting_makes_another_corpus(change, config, tmp_path):
    train, held_out, _ = read_splits(config)
    first = prepare_corpus(train, held_out, config, tmp_path)
    other = prepare_corpus(train, held_out, config.model_copy(update=change), tmp_path)
    assert other.folder != first.folder


def test_a_tokenizer_may_be_given(config, corpus, tmp_path):
    train, held_out, _ = read_splits(config)
    given = config.model_copy(update={"tokenizer": corpus.folder / "tokenizer", "vocab_size": 64})
    prepared = prepare_corpus(train, held_out, given, tmp_path)
    assert prepared.tokenizer.get_vocab() == corpus.tokenizer.get_vocab()


def test_a_tokenizer_that_is_given_may_be_extended_by_the_training_texts_words(config, corpus, tmp_path):
    train, held_out, _ = read_splits(config)
    train = [document._replace(text=document.text + " A zyxgloop.") for document in train]
    held_out = [document._replace(text=document.text + " A quixworth.") for document in held_out]
    folder = corpus.folder / "tokenizer"
    given = config.model_copy(update={"tokenizer": folder, "extend_tokenizer": 1})
    prepared = prepare_corpus(train, held_out, given, tmp_path)
    size = len(corpus.tokenizer)
    assert set(prepared.tokenizer.get_vocab()) - set(corpus.tokenizer.get_vocab()) == {"zyxgloop"}
    assert prepared.facts["vocab_size"] == size + 1
    assert (prepared.store("train").tokens == size).sum() == len(train)
    assert prepared.store("validation").tokens.max() < size
    plain = config.model_copy(update={"tokenizer": folder})
    assert prepare_corpus(train, held_out, plain, tmp_path).folder != prepared.folder


def test_preparation_that_fails_leaves_nothing(config, tmp_path, monkeypatch):
    train, held_out, _ = read_splits(config)

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("headway.data.corpus.prepare.write_store", fail)
    with pytest.raises(RuntimeError, match="disk is full"):
        prepare_corpus(train, held_out, config, tmp_path / "stores")
    assert list((tmp_path / "stores").iterdir()) == []


def test_too_few_documents_are_refused(tmp_path):
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps({"text": "Only this."}) + "\n")
    with pytest.raises(ConfigError, match=r"has 1 distinct document\(s\), too few to"):
        read_splits(CorpusConfig(source=str(path)))


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a prepared corpus \(no corpus\.json\)"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(("language", "sentences"), [("ru", 2), ("en", 3)])
def test_abbreviations_are_those_of_the_texts_language(language, sentences, tmp_path):
    texts = [f"Мы пришли в {hour} ч. вечера. Было темно." for hour in range(20)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CorpusConfig(source=str(source), vocab_size=200, max_length=32, language=language)
    corpus = prepare_corpus(*read_splits(config)[:2], config, tmp_path)
    store = corpus.store("train")
    assert store.num_sentences == sentences * store.num_documents
