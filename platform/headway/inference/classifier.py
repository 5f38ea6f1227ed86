"""Classifies texts with a trained model in this process, without padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoConfig

from headway.data.batches import Batch, LabelledBatches, collate
from headway.data.corpus.tokenizer import load_tokenizer, tokenize
from headway.data.sampling import Draw
from headway.engine.hardware.device import compute_dtype, default_device, precision_context
from headway.engine.model.encoder import load_classifier
from headway.engine.training.objectives import ClassificationObjective


class Prediction(NamedTuple):
    """The most probable class of a text, its probability, and those of all classes."""

    label: str
    score: float
    scores: dict[str, float]


class Classifier:
    """A classifier, loaded once from a folder.

    Args:
        folder: of the model and its tokenizer.
        max_batch_tokens: tokens computed at once.
    """

    def __init__(self, folder: Path, max_batch_tokens: int = 8192) -> None:
        self.labels = list(AutoConfig.from_pretrained(folder, local_files_only=True).id2label.values())
        self.tokenizer = load_tokenizer(folder)
        model = load_classifier(folder, self.labels, random_weights=False, seed=0)
        self.max_length = int(min(self.tokenizer.model_max_length, model.config.max_position_embeddings))
        self.max_batch_tokens = max_batch_tokens
        self.device = default_device()
        self.objective = ClassificationObjective(model).to(self.device).eval()
        self.dtype = compute_dtype("auto", self.device)

    def predict(self, texts: Sequence[str]) -> list[Prediction]:
        """Classify texts. A text longer than the model reads is cut."""
        if not texts:
            return []
        rows = LabelledBatches(
            tokenize(self.tokenizer, texts),
            np.zeros(len(texts), np.int64),
            self.tokenizer,
            max_length=self.max_length,
            batch_size=1,
            seed=0,
        )
        probabilities = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for batch in self._packed(rows):
            probabilities[batch.row_ids.numpy()] = self._probabilities(batch)
        return [self._prediction(row) for row in probabilities]

    def _packed(self, rows: LabelledBatches) -> Iterator[Batch]:
        """Batches of at most `max_batch_tokens` tokens, with texts of similar length together."""
        waiting: list[int] = []
        tokens = 0
        for index in np.argsort(rows.lengths, kind="stable").tolist():
            length = int(rows.lengths[index])
            if waiting and tokens + length > self.max_batch_tokens:
                yield collate([rows.sequence(Draw(0, row)) for row in waiting])
                waiting, tokens = [], 0
            waiting.append(index)
            tokens += length
        yield collate([rows.sequence(Draw(0, row)) for row in waiting])

    def _probabilities(self, batch: Batch) -> np.ndarray:
        with torch.inference_mode(), precision_context(self.dtype, self.device):
            logits = self.objective.logits(batch.to(self.device))
        return logits.float().softmax(-1).cpu().numpy()

    def _prediction(self, row: np.ndarray) -> Prediction:
        best = int(row.argmax())
        scores = {label: float(score) for label, score in zip(self.labels, row, strict=True)}
        return Prediction(self.labels[best], float(row[best]), scores)
