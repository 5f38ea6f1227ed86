"""Data in memory: lists, pairs and data sets."""

from __future__ import annotations

import datasets
import pytest

from headway.config.base import ConfigError
from headway.data.sources.memory import documents_in_memory, split_in_memory


def test_a_list_of_texts_and_a_dataset_give_the_same(pairs):
    texts = [text for text, _ in pairs]
    dataset = datasets.Dataset.from_dict({"text": texts, "label": [label for _, label in pairs]})
    one = documents_in_memory(texts, "train_data", labelled=False)
    other = documents_in_memory(dataset, "train_data", labelled=False)
    assert [d.text for d in one] == [d.text for d in other] == texts
    labelled = [documents_in_memory(data, "train_data", labelled=True) for data in (pairs, dataset)]
    assert [[(d.text, d.label) for d in side] for side in labelled] == [pairs, pairs]


def test_numbers_of_classes_become_names():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])}
    )
    dataset = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features)
    assert [d.label for d in documents_in_memory(dataset, "x", labelled=True)] == ["y", "n"]
    assert [d.label for d in documents_in_memory([("a", 1), ("b", 0)], "x", labelled=True)] == ["1", "0"]


@pytest.mark.parametrize(
    ("data", "labelled", "message"),
    [
        ([], False, "train_data: holds no text"),
        (["  "], False, "train_data: holds no text"),
        ([3], False, r"train_data\[0\]: int is not a text"),
        (["a", None], False, r"train_data\[1\]: NoneType is not a text"),
        (7, False, "train_data: int is not allowed; give a list or a datasets.Dataset"),
        (["a"], True, r"train_data\[0\]: 'a' is not a \(text, label\) pair"),
        ([("a", "x"), ("b", None)], True, r"train_data\[1\]: no label"),
        ([("a", "")], True, r"train_data\[0\]: no label"),
        (datasets.Dataset.from_dict({"body": ["a"]}), False, "no column 'text'; it has: body"),
    ],
)
def test_data_that_is_none_is_one_clear_line(data, labelled, message):
    with pytest.raises(ConfigError, match=message):
        documents_in_memory(data, "train_data", labelled)


def test_a_single_text_is_not_taken_for_a_list_of_letters():
    with pytest.raises(ConfigError, match="train_data: str is not allowed"):
        documents_in_memory("one text", "train_data", labelled=False)


def test_held_out_data_is_taken_as_given_or_from_the_training_data(texts):
    documents = documents_in_memory(texts, "train_data", labelled=False)
    assert split_in_memory(documents, documents[:3], 0.2) == (documents, documents[:3])
    kept, held_out = split_in_memory(documents, None, 0.2)
    assert sorted(d.text for d in kept + held_out) == sorted(texts)
    with pytest.raises(ConfigError, match="too few to hold some out; give validation_data"):
        split_in_memory(documents[:1], None, 0.2)
