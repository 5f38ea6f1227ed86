"""A model in this process, without a server: texts in, a row of answers for each out.

It runs the code that a server's replicas run, so that both give the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.inference.answers import ScoredWindow, best_answers, scored_window
from headway.inference.description import Kind, describe, kind_of
from headway.inference.entities import entities
from headway.inference.model import EncoderModel
from headway.inference.packing import Operation, Pack, packed
from headway.inference.tokens import Piece, TextTokenizer

_PACK_TOKENS = {"cpu": 4096, "cuda": 16_384}
_CANDIDATES = 5

_OPERATIONS: dict[Kind, Operation] = {
    "label": Operation("classify"),
    "labels": Operation("classify"),
    "score": Operation("classify"),
    "entities": Operation("tokens"),
    "masks": Operation("fill-mask", _CANDIDATES),
    "answers": Operation("answer"),
    "embedding": Operation("embed"),
}


class Predictor:
    """A model's folder, loaded once.

    Args:
        folder: of an encoder, with or without a head.
        kind: what is asked of it; what its head answers if None.
        precision: see `load_for_inference`.
        device: where it computes; the GPU, if there is one, if None.

    Raises:
        ConfigError: the folder holds no encoder that Headway can run.

    Attributes:
        kind: what is asked of it.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind | None = None,
        precision: Precision = "auto",
        device: torch.device | None = None,
    ) -> None:
        self.kind = kind or kind_of(describe(folder))
        self._model = EncoderModel(folder, precision, device)
        self._model.record_graphs()
        self._tokenizer = TextTokenizer(folder, self._model.description.max_length)

    def rows(self, texts: Sequence[str], questions: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """An answer for each text, cut to what the model reads as a server cuts it.

        Args:
            texts: any number of them.
            questions: one for each text, of a model that answers questions.

        Returns:
            For each text, by kind:
            `label`: `label` and its probability, `score`;
            `labels`: the `labels` whose probability reaches the task's threshold, and those of all, `scores`;
            `score`: the number that a regression or a cross-encoder gives, `score`;
            `entities`: `entities`, each with label, text, start, end and score;
            `masks`: `masks`, for each hidden word the likeliest, each with token and score;
            `answers`: `answers` in the text, each with text, start, end and score;
            `embedding`: `embedding`, float32 (embedding_size,), of unit length.

        Raises:
            ConfigError: questions that are missing, or a text without a hidden word for a model that looks
                for them.
        """
        return self.answered(texts, self.pieces(texts, questions)) if texts else []

    def pieces(self, texts: Sequence[str], questions: Sequence[str] | None = None) -> list[Piece]:
        """The tokens of texts, for `answered`, which another thread may be in meanwhile.

        Raises:
            ConfigError: as `rows` does.
        """
        if self.kind == "answers":
            if questions is None:
                raise ConfigError("question: the model looks for answers in texts; give a question")
            return self._tokenizer.pieces(questions, texts, overlong="window")
        pieces = self._tokenizer.pieces(texts)
        if self.kind == "masks":
            self._check_masks(pieces)
        return pieces

    def answered(self, texts: Sequence[str], pieces: Sequence[Piece]) -> list[dict[str, Any]]:
        """An answer for each text, as `rows` gives it, from its tokens."""
        found = self._run(pieces)
        if self.kind == "answers":
            return self._answers(texts, pieces, found)
        return [
            self._row(texts[i], piece, row) for i, (piece, row) in enumerate(zip(pieces, found, strict=True))
        ]

    def _run(self, pieces: Sequence[Piece]) -> list[Any]:
        sequences = [piece.sequence for piece in pieces]
        found: list[Any] = [None] * len(sequences)
        most = _PACK_TOKENS[self._model.device.type]
        for places in packed([len(sequence.ids) for sequence in sequences], most):
            results = self._model.run(_OPERATIONS[self.kind], Pack.of([sequences[place] for place in places]))
            for place, result in zip(places, results, strict=True):
                found[place] = result
        return found

    def _row(self, text: str, piece: Piece, found: Any) -> dict[str, Any]:
        labels = self._model.description.labels
        match self.kind:
            case "label":
                best = int(found.argmax())
                return {"label": labels[best], "score": float(found[best])}
            case "labels":
                scores = dict(zip(labels, found.tolist(), strict=True))
                threshold = self._model.description.threshold
                return {"labels": [label for label, p in scores.items() if p >= threshold], "scores": scores}
            case "score":
                return {"score": float(found[0])}
            case "entities":
                return {"entities": [one._asdict() for one in entities(text, [(piece, found)], labels)]}
            case "masks":
                return {"masks": [self._candidates(*word) for word in found]}
        return {"embedding": found}

    def _answers(
        self, texts: Sequence[str], pieces: Sequence[Piece], found: Sequence[Any]
    ) -> list[dict[str, Any]]:
        windows: list[list[ScoredWindow]] = [[] for _ in texts]
        for piece, scores in zip(pieces, found, strict=True):
            windows[piece.text].append(scored_window(piece.encoding, scores))
        settings = self._model.description.answers
        return [
            {"answers": [span._asdict() for span in best_answers(text, parts, settings)]}
            for text, parts in zip(texts, windows, strict=True)
        ]

    def _candidates(self, ids: np.ndarray, probabilities: np.ndarray) -> list[dict[str, Any]]:
        word = self._tokenizer.backend.id_to_token
        return [{"token": word(int(i)), "score": float(p)} for i, p in zip(ids, probabilities, strict=True)]

    def _check_masks(self, pieces: Sequence[Piece]) -> None:
        mask = self._tokenizer.mask_id
        assert mask is not None  # the model would not have been loaded
        for piece in pieces:
            if mask not in piece.sequence.ids:
                name = self._tokenizer.backend.id_to_token(mask)
                raise ConfigError(
                    f"model: it finds hidden words and has no other head; text {piece.text + 1} has no {name}"
                )
