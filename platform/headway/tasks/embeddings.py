"""Sentence embeddings: texts that mean the same lie close to each other."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, PreTrainedTokenizerBase

from headway.config.base import ConfigError
from headway.config.finetune import FinetuneConfig
from headway.data.sources.rows import Row, number_of, text_of
from headway.data.task_batches import GroupBatches
from headway.engine.training.task_objectives import EmbeddingObjective
from headway.tasks.regression import correlations
from headway.tasks.task import Item, Rows, Splits, Task


class Embeddings(Task):
    """Mean-pooled vectors; judged by how well their cosines rank scored pairs, or find each anchor's own.

    What it saves is a `SentenceTransformer`, and to transformers the encoder within.
    """

    kind = "embeddings"
    auto_class = AutoModel

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.primary = "spearman" if self.is_scored else "mrr"

    @classmethod
    def columns(cls, config: Any) -> list[str]:
        """See `Task`."""
        optional = [config.negative_column, config.score_column]
        return [config.text_column, config.pair_column, *(column for column in optional if column)]

    @classmethod
    def item(cls, config: Any, row: Row) -> Item:
        """See `Task`."""
        columns = [config.text_column, config.pair_column, config.negative_column]
        texts = tuple(text_of(row, column) for column in columns if column)
        score = number_of(row, config.score_column) if config.score_column else None
        return Item(texts, score, texts[0], row.origin)

    @classmethod
    def check(cls, splits: Splits) -> None:
        """Refuse a single row, and scores that are all the same."""
        for name, items in splits.items():
            scored = items[0].target is not None
            if len(items) < 2 or (scored and len({item.target for item in items}) < 2):
                raise ConfigError(f"task: the {name} split needs 2 rows or more, of different scores")

    @property
    def is_scored(self) -> bool:
        """Whether pairs come with a score of how alike they are."""
        return self.settings.get("score_column") is not None

    def batches(
        self, rows: Rows, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, seed: int = 0
    ) -> GroupBatches:
        """See `Task`."""
        scores = np.asarray([target or 0.0 for target in rows.targets], dtype=np.float32)
        return GroupBatches(
            rows.tokens,
            self._as_cosines(scores),
            tokenizer,
            max_length=self.max_length,
            batch_size=batch_size,
            seed=seed,
        )

    def trained_on(self, rows: Rows) -> Rows:
        """See `Task`; multiple negatives learns from pairs that are alike."""
        least = self.settings.get("min_score")
        if least is None or self.settings["loss"] != "multiple-negatives":
            return rows
        kept = rows.take(i for i, target in enumerate(rows.targets) if target >= least)
        if not len(kept):
            raise ConfigError(f"task.min_score: no training pair is scored {least:g} or more")
        return kept

    def _as_cosines(self, scores: np.ndarray) -> np.ndarray:
        """Scores stretched to 0 … 1 over the range they have in training."""
        if not self.is_scored:
            return scores
        low, high = self._score_range
        return (scores - low) / (high - low)

    @cached_property
    def _score_range(self) -> tuple[float, float]:
        targets = [float(target) for target in self.split("train").targets]
        return min(targets), max(targets)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> EmbeddingObjective:
        """See `Task`; a pooler of BERT's plays no part."""
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)
        return EmbeddingObjective(model, group_size=len(rows.texts[0]), kind=self.settings["loss"])

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """Correlation of cosines with scores; without scores, of finding each anchor's own second text."""
        vectors = np.stack(predictions)
        if self.is_scored:
            return correlations(np.asarray(rows.targets), (vectors[:, 0] * vectors[:, 1]).sum(-1))
        return retrieval_scores(vectors[:, 0], vectors[:, 1], [texts[1] for texts in rows.texts])

    def save(self, model: Any, tokenizer_folder: Path, folder: Path) -> None:
        """See `Task`; with the files that make it a `SentenceTransformer`."""
        super().save(model, tokenizer_folder, folder)
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        _write_json(
            folder / "modules.json",
            [
                {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
                for i, (path, name) in enumerate(modules)
            ],
        )
        _write_json(
            folder / "sentence_bert_config.json", {"max_seq_length": self.max_length, "do_lower_case": False}
        )
        pooling = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
        pooling |= dict.fromkeys(("pooling_mode_cls_token", "pooling_mode_max_tokens"), False)
        _write_json(folder / "1_Pooling" / "config.json", pooling)
        (folder / "2_Normalize").mkdir(exist_ok=True)


def retrieval_scores(anchors: np.ndarray, seconds: np.ndarray, texts: list[str]) -> dict[str, float]:
    """How high each anchor's own second text ranks among those of all rows.

    Args:
        anchors: float32, shape (rows, hidden_size), of length 1.
        seconds: likewise, in the same order.
        texts: the second texts; the same text is the same answer wherever it stands.
    """
    cosines = anchors @ seconds.T
    own = np.diagonal(cosines)
    index = np.unique(texts, return_inverse=True)[1]
    other = index[None, :] != index[:, None]
    ranks = 1 + ((cosines > own[:, None]) & other).sum(1)
    return {"mrr": float((1.0 / ranks).mean()), "accuracy": float((ranks == 1).mean())}


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
