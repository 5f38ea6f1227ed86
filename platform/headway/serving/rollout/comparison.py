"""How the answers of two versions to the same request differ, in numbers. No Ray, no HTTP."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LATENCIES_KEPT = 1000


@dataclass
class Comparison:
    """Of one operation, over all requests that were compared.

    Attributes:
        compared: texts, questions or queries that both versions answered.
        agreed: those with the same outcome: label, first word of each mask, entities, answer, first document.
        greatest_difference: between probabilities or scores of the same outcome.
        min_cosine: between a text's two embeddings.
        seconds: of each of the last requests, by the version that answers and by the one that is tried.
    """

    compared: int = 0
    agreed: int = 0
    greatest_difference: float = 0.0
    min_cosine: float = 1.0
    seconds: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))

    def embeddings(self, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
        """Add vectors of unit length.

        Raises:
            ValueError: they have different lengths.
        """
        for one, other in zip(ours, theirs, strict=True):
            if one.shape != other.shape:
                raise ValueError(f"vectors of {len(one)} and {len(other)} numbers cannot be compared")
            self.compared += 1
            self.min_cosine = min(self.min_cosine, float(one @ other))

    def scored(self, ours: Sequence[dict[Any, float]], theirs: Sequence[dict[Any, float]]) -> None:
        """Add scores by outcome; those agree whose highest score is of the same outcome."""
        for one, other in zip(ours, theirs, strict=True):
            self._add(_best(one) == _best(other), one, other)

    def found(self, ours: Sequence[dict[Any, float]], theirs: Sequence[dict[Any, float]]) -> None:
        """Add what was found, with its scores; those agree that found the same."""
        for one, other in zip(ours, theirs, strict=True):
            self._add(one.keys() == other.keys(), one, other)

    def summary(self, operation: str) -> dict[str, Any]:
        """For people: shares, and milliseconds of a request."""
        times = np.asarray(self.seconds) * 1000.0
        quality: dict[str, Any] = (
            {"min_cosine": round(self.min_cosine, 5)}
            if operation == "embeddings"
            else {
                "agreement": round(self.agreed / max(1, self.compared), 5),
                "greatest_difference": round(self.greatest_difference, 5),
            }
        )
        return {"compared": self.compared, **quality} | {
            f"{side}_ms": {f"p{q}": round(float(np.percentile(times[:, i], q)), 2) for q in (50, 99)}
            for i, side in enumerate(("served", "challenger"))
        }

    def _add(self, agree: bool, one: dict[Any, float], other: dict[Any, float]) -> None:
        self.compared += 1
        self.agreed += agree
        gaps = [abs(one[outcome] - other[outcome]) for outcome in one.keys() & other.keys()]
        self.greatest_difference = max([self.greatest_difference, *gaps])


def _best(scores: dict[Any, float]) -> Any:
    return max(scores, key=scores.__getitem__, default=None)


def _by_document(scores: Sequence[float]) -> list[dict[Any, float]]:
    return [dict(enumerate(scores))]


def _first_words(texts: Sequence[Any]) -> list[dict[Any, float]]:
    """The likeliest word of each mask, of each text."""
    return [{(place, mask[0][0]): mask[0][1] for place, mask in enumerate(masks)} for masks in texts]


def _entities(texts: Sequence[Any]) -> list[dict[Any, float]]:
    return [{(e.label, e.start, e.end): e.score for e in entities} for entities in texts]


def _first_span(spans: Sequence[Any]) -> list[dict[Any, float]]:
    return [{(span.start, span.end): span.score for span in spans[:1]}]


COMPARE: dict[str, Callable[[Comparison, Any, Any], None]] = {
    "embeddings": Comparison.embeddings,
    "classify": Comparison.scored,
    "rerank": lambda to, ours, theirs: to.scored(_by_document(ours), _by_document(theirs)),
    "fill-mask": lambda to, ours, theirs: to.found(_first_words(ours), _first_words(theirs)),
    "tokens": lambda to, ours, theirs: to.found(_entities(ours), _entities(theirs)),
    "answer": lambda to, ours, theirs: to.found(_first_span(ours), _first_span(theirs)),
}
"""By operation: adds the results of the version that answers, and of the one that is tried."""
