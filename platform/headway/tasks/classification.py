"""Single-label text classification: its data, prepared once, and its scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from headway.config import ClassificationTask, ConfigError
from headway.data.atomic import atomic_folder
from headway.data.batches import LabelledBatches
from headway.data.sampling import random_generator
from headway.data.sources import Document, read_documents
from headway.data.splitting import drop_duplicates, split_documents
from headway.data.store import open_store, write_store
from headway.data.tokenizer import tokenize
from headway.engine.device import compute_dtype, precision_context
from headway.engine.objectives import ClassificationObjective
from headway.engine.parallel import Worker

SPLITS = ("train", "validation", "test")
Splits = dict[str, list[Document]]


@dataclass(frozen=True)
class LabelledTexts:
    """One split of a task.

    Attributes:
        texts: as they were read.
        tokens: int32 token ids of each, without special tokens.
        labels: int64, shape (texts,): indices into the task's labels.
    """

    texts: list[str]
    tokens: list[np.ndarray]
    labels: np.ndarray

    def few(self, labels_per_class: int, seed: int) -> LabelledTexts:
        """So many texts of each class, chosen at random; all of a class that has fewer."""
        order = random_generator(seed, labels_per_class).permutation(len(self.labels))
        chosen: list[int] = []
        for label in np.unique(self.labels):
            chosen += [int(i) for i in order if self.labels[i] == label][:labels_per_class]
        rows = np.sort(np.asarray(chosen))
        return LabelledTexts([self.texts[i] for i in rows], [self.tokens[i] for i in rows], self.labels[rows])

    def batches(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, batch_size: int, seed: int = 0
    ) -> LabelledBatches:
        """The split as batches for the training loop."""
        return LabelledBatches(
            self.tokens, self.labels, tokenizer, max_length=max_length, batch_size=batch_size, seed=seed
        )


@dataclass(frozen=True)
class PreparedTask:
    """A task tokenised for one tokenizer: a folder a split, and `task.json`."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Labels, counts and the longest sequence."""
        return json.loads((self.folder / "task.json").read_text())

    @property
    def labels(self) -> list[str]:
        """Class names, in the order of their indices."""
        return self.facts["labels"]

    @property
    def max_length(self) -> int:
        """Tokens of a sequence at most, special ones included."""
        return int(self.facts["max_length"])

    def split(self, name: str) -> LabelledTexts:
        """The texts of `train`, `validation` or `test`."""
        folder = self.folder / name
        store = open_store(folder / "tokens")
        rows = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
        tokens = [np.array(store.span(i, i + 1)) for i in range(store.num_sentences)]
        return LabelledTexts(
            [row["text"] for row in rows], tokens, np.asarray([row["label"] for row in rows])
        )


def open_task(folder: Path) -> PreparedTask:
    """A task prepared earlier.

    Raises:
        ConfigError: the folder holds none.
    """
    if not (folder / "task.json").is_file():
        raise ConfigError(f"task: {str(folder)!r} is not a prepared task (no task.json)")
    return PreparedTask(folder)


def read_task(config: ClassificationTask) -> Splits:
    """The documents of each split: the held-out ones are the test, whatever else changes.

    Raises:
        ConfigError: as `read_documents`; fewer than two classes; a class that a split or training lacks.
    """
    documents = drop_duplicates(read_documents(config, config.label_column))
    rest, test = split_documents(documents, config.held_out)
    train, validation = split_documents(rest, config.validation, salt="validation")
    splits = {"train": train, "validation": validation, "test": test}
    check_splits(splits, config.source)
    return splits


def check_splits(splits: Splits, origin: str) -> None:
    """Refuse splits that nothing could be learnt from, or that hold a class never trained on."""
    trained = {document.label for document in splits["train"]}
    if len(trained) < 2:
        raise ConfigError(f"task: {origin!r} has {len(trained)} class(es) to train on; at least 2 are needed")
    for name, documents in splits.items():
        if not documents:
            raise ConfigError(f"task: {origin!r} has too few texts: none falls into the {name} split")
        unseen = sorted({str(d.label) for d in documents} - {str(label) for label in trained})
        if unseen:
            raise ConfigError(f"task: class {unseen[0]!r} of the {name} split has no training text")


def prepare_task(
    splits: Splits, tokenizer: PreTrainedTokenizerBase, max_length: int, stores: Path
) -> PreparedTask:
    """Tokenise a task's splits, or find them tokenised by an earlier call.

    Args:
        splits: documents of `train`, `validation` and `test`.
        tokenizer: the encoder's.
        max_length: tokens of a sequence at most, special ones included.
        stores: folder of all prepared tasks; this one's name there is a digest of its content.
    """
    digest = hashlib.blake2b(f"{max_length}".encode(), digest_size=10)
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    for name in SPLITS:
        for document in splits[name]:
            digest.update(hashlib.blake2b(f"{name} {document.label} {document.text}".encode()).digest())
    folder = stores / digest.hexdigest()
    if (folder / "task.json").is_file():
        return PreparedTask(folder)
    labels = sorted({str(document.label) for document in splits["train"]})
    with atomic_folder(folder) as draft:
        for name in SPLITS:
            _write_split(draft / name, splits[name], labels, tokenizer)
        counts = {name: len(splits[name]) for name in SPLITS}
        facts = {"labels": labels, "texts": counts, "max_length": max_length}
        (draft / "task.json").write_text(json.dumps(facts, indent=2))
    return PreparedTask(folder)


def _write_split(
    folder: Path, documents: Sequence[Document], labels: list[str], tokenizer: PreTrainedTokenizerBase
) -> None:
    texts = [document.text for document in documents]
    unknown = np.asarray([tokenizer.unk_token_id or 0], dtype=np.int32)
    tokens = [row if len(row) else unknown for row in tokenize(tokenizer, texts)]
    write_store(folder / "tokens", ([row] for row in tokens))
    with (folder / "texts.jsonl").open("w", encoding="utf-8") as stream:
        for document in documents:
            row = {"text": document.text, "label": labels.index(str(document.label))}
            stream.write(json.dumps(row) + "\n")


def predict_probabilities(
    model: PreTrainedModel, batches: LabelledBatches, batch_size: int = 64, precision: str = "auto"
) -> np.ndarray:
    """Class probabilities of every row, float32, shape (rows, classes), in the rows' order."""
    device = Worker().device
    objective = ClassificationObjective(model).to(device).eval()
    dtype = compute_dtype(precision, device)  # type: ignore[arg-type]
    result = np.empty((batches.rows, model.config.num_labels), dtype=np.float32)
    with torch.inference_mode(), precision_context(dtype, device):
        for batch in batches.in_order(0, 1, batch_size):
            logits = objective.logits(batch.to(device)).float()
            result[batch.row_ids.numpy()] = logits.softmax(-1).cpu().numpy()
    return result


def classification_scores(labels: np.ndarray, predicted: np.ndarray, num_labels: int) -> dict[str, Any]:
    """Accuracy, macro-F1, and the confusion matrix (rows: true class; columns: predicted)."""
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    classes = list(range(num_labels))
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        "confusion_matrix": confusion_matrix(labels, predicted, labels=classes).tolist(),
    }


def tfidf_baseline(train: LabelledTexts, test: LabelledTexts, num_labels: int) -> dict[str, Any]:
    """Scores of logistic regression on TF-IDF of words and word pairs: what no encoder has to be for."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    baseline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    baseline.fit(train.texts, train.labels)
    return classification_scores(test.labels, baseline.predict(test.texts), num_labels)
