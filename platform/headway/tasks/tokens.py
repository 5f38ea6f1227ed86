"""Token classification: words with a label each, such as entities or parts of speech."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, list_of
from headway.data.task_batches import WordBatches
from headway.engine.model.encoder import label_settings
from headway.engine.training.task_objectives import WordsObjective
from headway.tasks.item import Item, Splits
from headway.tasks.rows import Rows
from headway.tasks.task import Task
from headway.tasks.texts import balanced_weights

_OUTSIDE = "O"


class Tokens(Task):
    """Learns with cross-entropy over the labels of words. Judged by F1 of whole entities (CoNLL 2003)."""

    kind = "tokens"
    primary = "f1"
    auto_class = AutoModelForTokenClassification

    @classmethod
    def columns(cls, config: Any) -> list[str]:
        """See `Task`."""
        return [config.text_column, config.label_column]

    @classmethod
    def item(cls, config: Any, row: Row) -> Item:
        """See `Task`."""
        words, labels = (list_of(row, column, None) for column in cls.columns(config))
        if not words:
            raise ConfigError(f"{row.origin}: column {config.text_column!r} is empty")
        if len(words) != len(labels):
            raise ConfigError(f"{row.origin}: {len(words)} words have {len(labels)} labels")
        return Item(words, labels, [" ".join(words)], row.origin, sorted({*labels} - {_OUTSIDE}))

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: at least two labels, all of them in the training split."""
        trained = {label for item in splits["train"] for label in item.target}
        if len(trained) < 2:
            raise ConfigError(f"task: the training split has {len(trained)} label(s); at least 2 are needed")
        for name, items in splits.items():
            unseen = sorted({label for item in items for label in item.target} - trained)
            if unseen:
                raise ConfigError(
                    f"task: label {unseen[0]!r} of the {name} split has no word in the training split"
                )

    @classmethod
    def label_names(cls, splits: Splits) -> list[str]:
        """See `Task`."""
        return sorted({label for item in splits["train"] for label in item.target})

    @classmethod
    def store(cls, items: Sequence[Item], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """See `Task`; the pieces of each word, tokenized in its sentence: some tokenizers see spaces."""
        unknown = np.asarray([tokenizer.unk_token_id or 0], dtype=np.int32)
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch(
            [list(item.texts) for item in items], is_pretokenized=True, add_special_tokens=False
        )
        rows = []
        for item, encoding in zip(items, encodings, strict=True):
            pieces: list[list[int]] = [[] for _ in item.texts]
            for word, index in zip(encoding.word_ids, encoding.ids, strict=True):
                pieces[word].append(index)
            rows.append([np.asarray(ids, np.int32) if ids else unknown for ids in pieces])
        return {"tokens": rows}

    def label_rows(self, rows: Rows) -> list[np.ndarray]:
        """Indices of each row's labels, int64, shape (words,)."""
        index = {label: i for i, label in enumerate(self.labels)}
        return [np.asarray([index[label] for label in target]) for target in rows.targets]

    def batches(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int = 0
    ) -> WordBatches:
        """See `Task`."""
        return WordBatches(
            rows.tokens,
            self.label_rows(rows),
            tokenizer,
            max_length=self.max_length,
            batch_size=batch_size,
            seed=seed,
        )

    def model_settings(self) -> dict[str, Any]:
        """See `Task`."""
        return label_settings(self.labels)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> WordsObjective:
        """See `Task`."""
        weights = None
        if config.class_weights == "balanced":
            counts = np.bincount(np.concatenate(self.label_rows(rows)), minlength=len(self.labels))
            weights = torch.from_numpy(balanced_weights(counts))
        return WordsObjective(model, class_weights=weights, label_smoothing=config.label_smoothing)

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, and the fraction of words with the right label.

        A word that was cut off counts as outside of any entity.
        """
        from seqeval.metrics import f1_score, precision_score, recall_score

        predicted = [
            self._names(row, len(target)) for row, target in zip(predictions, rows.targets, strict=True)
        ]
        right = sum(
            one == other
            for names, target in zip(predicted, rows.targets, strict=True)
            for one, other in zip(names, target, strict=True)
        )
        return {
            "f1": float(f1_score(rows.targets, predicted, zero_division=0)),
            "precision": float(precision_score(rows.targets, predicted, zero_division=0)),
            "recall": float(recall_score(rows.targets, predicted, zero_division=0)),
            "accuracy": right / sum(map(len, rows.targets)),
        }

    def _names(self, outputs: np.ndarray, words: int) -> list[str]:
        names = [self.labels[index] for index in outputs.argmax(-1)]
        return names + [_OUTSIDE] * (words - len(names))
