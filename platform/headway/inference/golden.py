"""A model's own test: texts and what it answered when it was made, kept beside its weights."""

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
"""Probabilities may differ by so much, and an embedding's cosine: bf16 and int8 are not exact."""

_WARM_UP = ["Warm up.", "A second text, a little longer than the first one."]


def store_golden(folder: Path, texts: Sequence[str]) -> None:
    """Write what a model answers to some texts, computed in float32, beside its weights."""
    from headway.inference.model import EncoderModel

    outputs = _answers(EncoderModel(folder, "fp32"), folder, texts)
    content = {"texts": list(texts), "outputs": [row.tolist() for row in outputs]}
    (folder / FILE).write_text(json.dumps(content), encoding="utf-8")


def disagreement(model: EncoderModel, folder: str) -> str | None:
    """How a loaded model departs from its stored answers; None when it does not, or none are stored."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    found = _answers(model, Path(folder), stored["texts"])
    for text, expected, answer in zip(stored["texts"], stored["outputs"], found, strict=True):
        if len(expected) != len(answer):
            return f"{len(answer)} outputs for {text[:40]!r}, {len(expected)} are stored"
        distance = _distance(model, np.asarray(expected), answer)
        if not distance <= _TOLERANCE:
            return f"the answer to {text[:40]!r} is {distance:.3g} away from the stored one"
    return None


def warm_up(model: EncoderModel, folder: str) -> None:
    """Compute a little of everything once.

    Raises:
        ValueError: the outputs are no numbers.
    """
    for row in _answers(model, Path(folder), _WARM_UP):
        if not np.isfinite(row).all():
            raise ValueError("its outputs are not finite")


def _answers(model: EncoderModel, folder: Path, texts: Sequence[str]) -> list[np.ndarray]:
    pieces = TextTokenizer(folder, model.description.max_length).pieces(texts)
    operation = Operation("classify" if "classify" in model.description.abilities else "embed")
    return model.run(operation, Pack.of([piece.sequence for piece in pieces]))


def _distance(model: EncoderModel, expected: np.ndarray, found: np.ndarray) -> float:
    if "classify" in model.description.abilities:
        return float(np.abs(expected - found).max())
    return float(1.0 - expected @ found)
