"""How the answers of two versions to the same requests differ, in numbers. No Ray, no HTTP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Scores = dict[Any, float]
"""Possible outcomes of a text, question or query, each with its score."""

_LATENCIES_KEPT = 1000


class Comparison(ABC):
    """Of one operation, over all requests that were compared.

    Attributes:
        compared: texts, questions or queries that both versions answered.
        seconds: that each of the last requests took, for the serving version and for the challenger.
    """

    def __init__(self) -> None:
        self.compared = 0
        self.seconds: deque[tuple[float, float]] = deque(maxlen=_LATENCIES_KEPT)

    @abstractmethod
    def add(self, ours: Any, theirs: Any) -> None:
        """Count the results of the serving version and of the challenger for one request.

        Raises:
            ValueError: they have different shapes.
        """

    @abstractmethod
    def quality(self) -> dict[str, float]:
        """How much the versions agree, by figure."""

    def summary(self) -> dict[str, Any]:
        """The figures for people; latencies are in milliseconds."""
        times = np.asarray(self.seconds) * 1000.0
        return {"compared": self.compared, **self.quality()} | {
            f"{side}_ms": {f"p{q}": round(float(np.percentile(times[:, i], q)), 2) for q in (50, 99)}
            for i, side in enumerate(("served", "challenger"))
        }


class VectorComparison(Comparison):
    """Compares embeddings by their cosine.

    Attributes:
        min_cosine: the lowest between a text's two embeddings.
    """

    def __init__(self) -> None:
        super().__init__()
        self.min_cosine = 1.0

    def add(self, ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> None:
        """See `Comparison`; vectors of unit length."""
        for one, other in zip(ours, theirs, strict=True):
            if one.shape != other.shape:
                raise ValueError(f"vectors of {len(one)} and {len(other)} numbers cannot be compared")
            self.compared += 1
            self.min_cosine = min(self.min_cosine, float(one @ other))

    def quality(self) -> dict[str, float]:
        """See `Comparison`."""
        return {"min_cosine": round(self.min_cosine, 5)}


class OutcomeComparison(Comparison):
    """Compares outcomes and their scores.

    Attributes:
        agreed: texts, questions or queries with the same outcome.
        max_difference: the greatest between two scores of the same outcome.

    Args:
        scores: makes a list of scores by outcome from an operation's results.
        agree: whether two of them mean the same.
    """

    def __init__(
        self, scores: Callable[[Any], Sequence[Scores]], agree: Callable[[Scores, Scores], bool]
    ) -> None:
        super().__init__()
        self.agreed = 0
        self.max_difference = 0.0
        self._scores, self._agree = scores, agree

    def add(self, ours: Any, theirs: Any) -> None:
        """See `Comparison`."""
        for one, other in zip(self._scores(ours), self._scores(theirs), strict=True):
            self.compared += 1
            self.agreed += self._agree(one, other)
            gaps = [abs(one[outcome] - other[outcome]) for outcome in one.keys() & other.keys()]
            self.max_difference = max([self.max_difference, *gaps])

    def quality(self) -> dict[str, float]:
        """See `Comparison`."""
        return {
            "agreement": round(self.agreed / max(1, self.compared), 5),
            "greatest_difference": round(self.max_difference, 5),
        }


def compare_classes() -> Comparison:
    """For scores by label: texts agree if the same label is the best."""
    return OutcomeComparison(lambda texts: texts, _same_best)


def compare_rankings() -> Comparison:
    """For scores of documents: queries agree if the same document comes first."""
    return OutcomeComparison(lambda scores: [dict(enumerate(scores))], _same_best)


def compare_masked_words() -> Comparison:
    """For candidates of masked words: texts agree if the likeliest word of each mask is the same."""
    return OutcomeComparison(
        lambda texts: [{(i, mask[0][0]): mask[0][1] for i, mask in enumerate(masks)} for masks in texts],
        _same_outcomes,
    )


def compare_entities() -> Comparison:
    """For entities: texts agree if all entities are the same."""
    return OutcomeComparison(
        lambda texts: [{(e.label, e.start, e.end): e.score for e in entities} for entities in texts],
        _same_outcomes,
    )


def compare_answers() -> Comparison:
    """For answer spans: questions agree if the best span is the same."""
    return OutcomeComparison(
        lambda spans: [{(span.start, span.end): span.score for span in spans[:1]}], _same_outcomes
    )


def _same_best(one: Scores, other: Scores) -> bool:
    return bool(_best(one) == _best(other))


def _same_outcomes(one: Scores, other: Scores) -> bool:
    return one.keys() == other.keys()


def _best(scores: Scores) -> Any:
    return max(scores, key=scores.__getitem__, default=None)
