"""Sentence embeddings: texts with the same meaning get similar vectors."""

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
from headway.engine.formats.static import MODEL_TYPE as STATIC
from headway.engine.training.contrastive import ContrastiveObjective
from headway.engine.training.task_objectives import CosineObjective, EmbeddingObjective
from headway.tasks.item import Item, Splits
from headway.tasks.ranking import retrieval_scores
from headway.tasks.regression import correlations
from headway.tasks.rows import Rows
from headway.tasks.task import Task


class Embeddings(Task):
    """Learns mean-pooled vectors. Judged by their cosines: do they rank scored pairs, or find each positive?

    A saved model is a `SentenceTransformer`; transformers sees the encoder in it.
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
        # Not the third: what was looked for as a bad match is often another row's good one.
        return Item(texts, score, texts[:2], row.origin)

    @classmethod
    def check(cls, splits: Splits) -> None:
        """See `Task`: at least two rows, and scores that differ."""
        for name, items in splits.items():
            scored = items[0].target is not None
            if len(items) < 2 or (scored and len({item.target for item in items}) < 2):
                raise ConfigError(f"task: the {name} split needs at least 2 rows with different scores")

    @property
    def is_scored(self) -> bool:
        """Whether each pair has a score of how similar its texts are."""
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
        """See `Task`; multiple negatives learns only from similar pairs."""
        min_score = self.settings.get("min_score")
        if min_score is None or self.settings["loss"] != "multiple-negatives":
            return rows
        kept = rows.take(i for i, target in enumerate(rows.targets) if target >= min_score)
        if not len(kept):
            raise ConfigError(f"task.min_score: no training pair has a score of at least {min_score:g}")
        return kept

    def _as_cosines(self, scores: np.ndarray) -> np.ndarray:
        """Scores, with the range they have in the training split mapped to 0 … 1."""
        if not self.is_scored:
            return scores
        low, high = self._score_range
        return (scores - low) / (high - low)

    @cached_property
    def _score_range(self) -> tuple[float, float]:
        targets = [float(target) for target in self.split("train").targets]
        return min(targets), max(targets)

    def objective(self, model: Any, config: FinetuneConfig, rows: Rows) -> EmbeddingObjective:
        """See `Task`; BERT's pooler is not used, and so not trained."""
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            pooler.requires_grad_(False)
        learnt_by = CosineObjective if self.settings["loss"] == "cosine" else ContrastiveObjective
        return learnt_by(model, group_size=len(rows.texts[0]))

    def scores(self, rows: Rows, predictions: list[np.ndarray], batches: Any) -> dict[str, float]:
        """How well cosines rank the pairs; without scores, how well they find each second text."""
        vectors = np.stack(predictions)
        if self.is_scored:
            return correlations(np.asarray(rows.targets), (vectors[:, 0] * vectors[:, 1]).sum(-1))
        return retrieval_scores(vectors[:, 0], vectors[:, 1], [texts[1] for texts in rows.texts])

    def save(self, model: Any, tokenizer_folder: Path, folder: Path) -> None:
        """See `Task`; adds the files that make it a `SentenceTransformer`."""
        super().save(model, tokenizer_folder, folder)
        if model.config.model_type == STATIC:
            return  # it is one already
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


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
