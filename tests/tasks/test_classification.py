"""Classification: its splits, its scores against scikit-learn, its baseline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from transformers import AutoModelForSequenceClassification

from encoder_folders import load_classifier
from headway.config.base import ConfigError
from headway.config.tasks import ClassificationTask
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.parallel.worker import Worker
from headway.engine.training.objectives import ClassificationObjective
from headway.engine.training.scoring import predict
from headway.tasks.classification import classification_scores, tfidf_baseline
from headway.tasks.preparation import prepare_task, read_task
from headway.tasks.rows import Rows
from headway.tasks.task import open_task


@pytest.fixture(scope="module")
def config(labelled_file) -> ClassificationTask:
    return ClassificationTask(source=str(labelled_file), max_length=48)


@pytest.fixture(scope="module")
def task(config, corpus, tmp_path_factory):
    return prepare_task(read_task(config), corpus.tokenizer, tmp_path_factory.mktemp("tasks"), max_length=48)


def test_splits_are_disjoint_and_cover_everything(config, pairs):
    splits = read_task(config)
    texts = [item.texts[0] for side in splits.values() for item in side]
    assert sorted(texts) == sorted(text for text, _ in pairs)
    assert all(splits.values())


def test_the_test_split_is_what_a_corpus_holds_out(config, corpus):
    """So nothing that is scored was ever pretrained on."""
    held_out = read_task(config)["test"]
    store = corpus.store("validation")
    assert store.num_documents == len(held_out)
    first = corpus.tokenizer(held_out[0].texts[0], add_special_tokens=False)["input_ids"]
    assert store.span(0, int(store.documents[1])).tolist() == first


def test_a_prepared_task_gives_its_texts_tokens_and_labels_back(task, config, corpus):
    splits = read_task(config)
    assert task.labels == ["garden", "harbour", "kitchen"]
    for name, items in splits.items():
        split = task.split(name)
        texts = [item.texts[0] for item in items]
        assert split.texts == [[text] for text in texts]
        assert [task.labels[label] for label in task.label_array(split)] == [i.target for i in items]
        expected = corpus.tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert [row[0].tolist() for row in split.tokens] == expected


def test_the_same_task_is_prepared_once(task, config, corpus):
    again = prepare_task(read_task(config), corpus.tokenizer, task.folder.parent, max_length=48)
    assert again.folder == task.folder
    shorter = prepare_task(read_task(config), corpus.tokenizer, task.folder.parent, max_length=24)
    assert shorter.folder != task.folder


def test_few_labels_are_so_many_of_each_class_and_the_same_for_a_seed(task):
    train = task.split("train")
    few = train.few(5, seed=1)
    assert np.bincount(task.label_array(few)).tolist() == [5, 5, 5]
    assert all(text in train.texts for text in few.texts)
    assert few.texts == train.few(5, seed=1).texts
    assert few.texts != train.few(5, seed=2).texts
    assert len(train.few(10**6, seed=0).texts) == len(train.texts)


def test_scores_equal_scikit_learns():
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 200), rng.integers(0, 3, 200)
    scores = classification_scores(labels, predicted, 4)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0))
    assert scores["confusion_matrix"] == confusion_matrix(labels, predicted).tolist()
    assert scores["confusion_matrix"][1][2] == int(((labels == 1) & (predicted == 2)).sum())


def test_a_class_nobody_has_counts_as_missed():
    scores = classification_scores(np.asarray([0, 1]), np.asarray([0, 1]), 3)
    assert (scores["accuracy"], scores["macro_f1"]) == (1.0, pytest.approx(2 / 3))


def test_probabilities_equal_those_of_transformers_row_by_row(classifier, task):
    test = task.split("test")
    tokenizer = load_tokenizer(classifier)
    model = load_classifier(classifier, task.labels, random_weights=False, seed=0)
    batches = task.batches(test, tokenizer, batch_size=8)
    objective = ClassificationObjective(model)
    rows = predict(objective, batches, Worker(), batch_size=7, precision="fp32").rows
    probabilities = torch.from_numpy(np.stack(rows)).softmax(-1).numpy()
    reference = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    encoded = tokenizer(
        [texts[0] for texts in test.texts], padding=True, truncation=True, max_length=48, return_tensors="pt"
    )
    with torch.inference_mode():
        expected = reference(**encoded).logits.softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-5)


def test_tfidf_learns_what_words_tell(task):
    words = ["bread", "bread", "boat", "boat", "rose"] * 5
    labels = {"bread": "kitchen", "boat": "harbour", "rose": "garden"}
    data = Rows([[f"{word} and then"] for word in words], [labels[word] for word in words], {}, [], [])
    assert tfidf_baseline(task, data, data)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("a", i) for i in range(30)], r"the training split has 1 class\(es\); at least 2 are needed"),
        (
            [("a", 0), ("b", 1), ("a", 2)],
            "at least 2 are needed|too few rows|has no row in the training split",
        ),
    ],
)
def test_labels_that_nothing_can_be_learnt_from_are_refused(rows, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"Text {i}", "label": label}) + "\n" for label, i in rows))
    with pytest.raises(ConfigError, match=message):
        read_task(ClassificationTask(source=str(path)))


def test_a_class_without_training_texts_is_named(tmp_path):
    def written(name, rows):
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps({"text": f"Text {i}", "label": label}) + "\n" for label, i in rows)
        )
        return str(path)

    common = [("a", i) for i in range(30)] + [("b", i) for i in range(30, 60)]
    source = written("common.jsonl", common)
    test_source = written("test.jsonl", [("rare", 1001), ("rare", 1002)])
    with pytest.raises(ConfigError, match=r"^task: class 'rare' of the test split has no row in the train"):
        read_task(ClassificationTask(source=source, test_source=test_source))
    for number in range(40):  # whatever its hash
        source = written(f"rows{number}.jsonl", [*common, ("rare", 1000 + number)])
        with pytest.raises(
            ConfigError, match=r"^task: class 'rare' has only one row; at least 2 are needed$"
        ):
            read_task(ClassificationTask(source=source))


def test_a_folder_that_is_no_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is not a prepared task \(no task\.json\)"):
        open_task(tmp_path)
