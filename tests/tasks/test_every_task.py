"""Every kind of task from its source to a saved model, against transformers and sentence-transformers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer
from sklearn.metrics import f1_score
from transformers import AutoTokenizer

import headway
from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.data.corpus.tokenizer import load_tokenizer
from headway.engine.parallel.worker import Worker
from headway.engine.training.scoring import predict
from headway.inference.description import describe
from headway.inference.tokens import TextTokenizer
from headway.tasks.preparation import prepared
from headway.tasks.task import open_task

KINDS = [
    "pairs",
    "multi-label",
    "regression",
    "tokens",
    "question-answering",
    "embeddings",
    "scored-embeddings",
    "reranking",
]
LENGTH = 64
STEPS = {"tokens": 50, "multi-label": 40}


@pytest.fixture(scope="module")
def trained(encoder, task_settings, runs):
    """What fine-tuning for a kind of task leaves; trained once each."""
    models: dict[str, Any] = {}

    def train(kind: str) -> Any:
        if kind not in models:
            models[kind] = headway.finetune(
                model=encoder,
                task=task_settings[kind] | {"max_length": LENGTH},
                steps=STEPS.get(kind, 12),
                batch_size=16,
                learning_rate=3e-3,
                precision="fp32",
                best_by="loss",
                runs=runs,
                quiet=True,
            )
        return models[kind]

    return train


@pytest.fixture
def task_of(task_settings, encoder, runs):
    def prepare(kind: str):
        settings = {"model": "m", "task": task_settings[kind] | {"max_length": LENGTH}}
        config = validate(FinetuneConfig, settings).task
        return prepared(config, load_tokenizer(encoder), runs / "stores" / "tasks")

    return prepare


def headway_outputs(task, folder, rows):
    """What the saved model says, through Headway's unpadded forward."""
    config = validate(FinetuneConfig, {"model": str(folder), "task": str(task.folder)})
    objective = task.objective(task.load(folder, config), config, rows)
    batches = task.batches(rows, load_tokenizer(folder), batch_size=8)
    predictions = predict(objective, batches, Worker(), batch_size=8, precision="fp32")
    return predictions.rows, batches


def padded_outputs(folder, *texts, **more):
    """What transformers' own model says to a padded batch that its own tokenizer makes."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(*texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt", **more)
    with torch.inference_mode():
        return model(**encoded), encoded


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_measures_the_scores_of_the_model_that_is_kept(kind, trained, task_of):
    metrics, task = trained(kind).metrics, task_of(kind)
    assert metrics["validation_loss"] < metrics["validation_loss_start"]
    assert metrics["primary"] == task.primary
    rows = task.split("validation")
    predicted, batches = headway_outputs(task, trained(kind).path, rows)
    for name, value in task.scores(rows, predicted, batches).items():
        assert metrics[f"validation_{name}"] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_measured_is_what_the_settings_allow_to_select_by(kind, trained, task_settings):
    task = validate(FinetuneConfig, {"model": "m", "task": task_settings[kind]}).task
    assert not isinstance(task, str)
    metrics = trained(kind).metrics
    measured = {name.removeprefix("validation_") for name in metrics if name.startswith("validation_")}
    assert measured - {"loss_start"} == set(task.measures)


@pytest.mark.parametrize("kind", ["pairs", "multi-label", "regression", "reranking"])
def test_a_saved_model_says_the_same_to_transformers(kind, trained, task_of):
    folder, task = trained(kind).path, task_of(kind)
    rows = task.split("test").take(range(10))
    predicted, _ = headway_outputs(task, folder, rows)
    output, _ = padded_outputs(folder, *(list(column) for column in zip(*rows.texts, strict=True)))
    expected = output.logits.numpy()
    np.testing.assert_allclose(np.stack(predicted).reshape(expected.shape), expected, rtol=1e-3, atol=1e-4)


def test_multi_label_f1_is_scikit_learns_of_transformers_answers(trained, task_of):
    folder, task = trained("multi-label").path, task_of("multi-label")
    rows = task.split("test")
    predicted, batches = headway_outputs(task, folder, rows)
    output, _ = padded_outputs(folder, [texts[0] for texts in rows.texts])
    answers = output.logits.sigmoid().numpy() >= 0.5
    expected = f1_score(task.label_array(rows), answers, average="micro")
    assert task.scores(rows, predicted, batches)["micro_f1"] == pytest.approx(expected)


def test_word_labels_are_transformers_labels_of_first_pieces(trained, task_of):
    folder, task = trained("tokens").path, task_of("tokens")
    rows = task.split("test").take(range(8))
    predicted, _ = headway_outputs(task, folder, rows)
    output, encoded = padded_outputs(folder, rows.texts, is_split_into_words=True)
    for row, outputs in enumerate(predicted):
        words = encoded.word_ids(row)
        first = [i for i, word in enumerate(words) if word is not None and word != words[i - 1]]
        np.testing.assert_allclose(outputs, output.logits[row, first].numpy(), rtol=1e-3, atol=1e-4)


def test_entities_are_learned(trained):
    """Subject and object have the same positions in each sentence."""
    assert trained("tokens").metrics["validation_f1"] > 0.8


def test_words_that_are_cut_off_count_as_outside(task_of):
    task = task_of("tokens")
    rows = task.split("test").take([0])
    index = [task.labels.index(label) for label in rows.targets[0]]
    perfect = np.eye(len(task.labels))[index]
    assert task.scores(rows, [perfect], None)["f1"] == 1.0
    assert task.scores(rows, [perfect[:2]], None)["recall"] == 0.5


def test_windows_are_those_of_transformers_with_a_stride(task_of, encoder):
    task = task_of("question-answering")
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = task.split("train")
    batches = task.batches(rows, load_tokenizer(encoder), batch_size=4)
    expected = tokenizer(
        *(list(column) for column in zip(*rows.texts, strict=True)),
        truncation="only_second",
        max_length=LENGTH,
        stride=8,
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )
    assert len(batches.windows) == len(expected["input_ids"]) > len(rows)
    for batch in batches.in_order(0, 1, 1):
        row = int(batch.row_ids[0])
        assert batch.input_ids.tolist() == expected["input_ids"][row]
        assert batch.token_type_ids.tolist() == expected["token_type_ids"][row]


def test_a_right_answer_is_found_again_in_its_passage(task_of, encoder):
    task = task_of("question-answering")
    rows = task.split("train")
    batches = task.batches(rows, load_tokenizer(encoder), batch_size=4)
    outputs = []
    for window, length in zip(batches.windows, batches.lengths, strict=True):
        scores = np.zeros((length, 2), np.float32)
        first, last = window.answer
        # The first token says that the window does not hold the answer.
        scores[first, 0] = scores[last, 1] = 9.0
        outputs.append(scores)
    assert task.answers(rows, outputs, batches) == [target["texts"][0] for target in rows.targets]
    assert task.scores(rows, outputs, batches) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize("kind", ["embeddings", "scored-embeddings"])
def test_sentence_transformers_loads_embeddings_and_gives_the_same_vectors(kind, trained, task_of):
    folder, task = trained(kind).path, task_of(kind)
    rows = task.split("test").take(range(6))
    predicted, _ = headway_outputs(task, folder, rows)
    model = SentenceTransformer(str(folder), device="cpu")
    expected = model.encode([text for texts in rows.texts for text in texts])
    np.testing.assert_allclose(np.concatenate(predicted), expected, rtol=1e-3, atol=1e-4)


def test_sentence_transformers_loads_a_reranker_and_ranks_alike(trained, task_of):
    folder, task = trained("reranking").path, task_of("reranking")
    rows = task.split("test").take(range(8))
    predicted, _ = headway_outputs(task, folder, rows)
    model = CrossEncoder(str(folder), device="cpu", max_length=LENGTH)
    scores = model.predict([tuple(texts) for texts in rows.texts], activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(np.asarray(predicted), scores, rtol=1e-3, atol=1e-4)


def test_spearman_is_scipys_of_the_saved_vectors(trained, task_of):
    from scipy.stats import spearmanr

    folder, task = trained("scored-embeddings").path, task_of("scored-embeddings")
    rows = task.split("test")
    predicted, batches = headway_outputs(task, folder, rows)
    cosines = [float(first @ second) for first, second in predicted]
    expected = spearmanr(cosines, rows.targets).statistic
    assert task.scores(rows, predicted, batches)["spearman"] == pytest.approx(expected)


def test_a_prepared_task_is_found_again_by_its_folder(task_of):
    task = task_of("tokens")
    again = open_task(task.folder)
    assert type(again) is type(task)
    assert again.labels == ["B-WHAT", "B-WHO", "I-WHAT", "O"]


@pytest.mark.parametrize("kind", ["tokens", "multi-label", "pairs", "reranking"])
def test_few_labels_are_so_many_rows_of_each_class(kind, task_of):
    rows = task_of(kind).split("train")
    few = rows.few(3, seed=1)
    assert set(few.class_counts) == set(rows.class_counts)
    assert min(few.class_counts.values()) == 3
    assert len(few) <= 3 * len(rows.class_counts) < len(rows)
    assert few.texts == rows.few(3, seed=1).texts != rows.few(3, seed=2).texts


@pytest.mark.parametrize("kind", ["question-answering", "regression", "embeddings", "scored-embeddings"])
def test_few_labels_of_a_task_without_classes_are_so_many_rows(kind, task_of):
    rows = task_of(kind).split("train")
    assert len(rows.few(7, seed=1)) == 7
    assert len(rows.few(10**6, seed=1)) == len(rows)


@pytest.mark.parametrize("kind", ["pairs", "tokens", "question-answering", "embeddings", "reranking"])
def test_a_model_is_served_at_the_length_that_it_was_trained_at(kind, trained):
    """The encoder's tokenizer says 32, its positions 512."""
    folder = trained(kind).path
    description = describe(folder)
    assert description.max_length == LENGTH
    tokenizer = TextTokenizer(folder, description.max_length)
    [piece] = tokenizer.pieces(["The baker slices the fresh bread. " * 40])
    assert len(piece.sequence.ids) == LENGTH


def test_folds_are_stratified_and_every_row_is_held_out_once(task_of):
    rows = task_of("pairs").split("train")
    held_out = []
    for number in range(4):
        kept, part = rows.fold(number, 4, seed=0)
        assert len(kept) + len(part) == len(rows)
        assert part.targets.count("same") == pytest.approx(rows.targets.count("same") / 4, abs=1)
        held_out += part.texts
    assert sorted(held_out) == sorted(rows.texts)
