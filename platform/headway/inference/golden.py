"""Stored answers of a model: what it gave for some texts when it was made, kept beside its weights.

A server compares a version with its stored answers before the version serves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headway.inference.packing import Operation, Pack
from headway.inference.tokens import TextTokenizer

if TYPE_CHECKING:
    from headway.inference.model import EncoderModel

FILE = "golden.json"

_TOLERANCE = 0.05
"""How far a probability may be off, or an embedding's cosine from 1: bf16 and int8 are not exact."""

_WARM_UP = ["Warm up.", "A second text, a little longer than the first one."]


def store_golden(folder: Path, texts: Sequence[str]) -> None:
    """Compute a model's answers to some texts in float32, and write them beside its weights."""
    from headway.inference.model import EncoderModel

    outputs = _answers(EncoderModel(folder, "fp32"), folder, texts)
    content = {"texts": list(texts), "outputs": [row.tolist() for row in outputs]}
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


def disagreement(model: EncoderModel, folder: str) -> str | None:
    """How a model's answers differ from the stored ones; None if they do not, or if none are stored."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    answers = _answers(model, Path(folder), stored["texts"])
    for text, expected, answer in zip(stored["texts"], stored["outputs"], answers, strict=True):
        if len(expected) != len(answer):
            return f"it gives {len(answer)} outputs for {text[:40]!r}; {len(expected)} are stored"
        distance = _distance(model, np.asarray(expected), answer)
        if not distance <= _TOLERANCE:
            return f"the answer to {text[:40]!r} is {distance:.3g} away from the stored one"
    return None


def warm_up(model: EncoderModel, folder: str) -> None:
    """Compute two texts, so that later ones find everything loaded.

    Raises:
        ValueError: an output is not finite.
    """
    for row in _answers(model, Path(folder), _WARM_UP):
        if not np.isfinite(row).all():
            raise ValueError("its outputs are not finite")


def _answers(model: EncoderModel, folder: Path, texts: Sequence[str]) -> list[np.ndarray]:
    pieces = TextTokenizer(folder, model.description.max_length).pieces(texts)
    return model.run(
        Operation(model.description.main_operation), Pack.of([piece.sequence for piece in pieces])
    )


def _distance(model: EncoderModel, expected: np.ndarray, answer: np.ndarray) -> float:
    if model.description.main_operation == "classify":
        return float(np.abs(expected - answer).max())
    return float(1.0 - expected @ answer)
