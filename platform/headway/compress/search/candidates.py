"""Smaller models that were tried, and which of them is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from headway.config.compression.compress import TargetConfig
from headway.config.serve import Precision
from headway.engine.training.early_stopping import SMALLER_IS_BETTER

RATIOS = ("latency", "throughput", "size")
_LARGER_IS_BETTER = ("throughput",)
_ROUNDING = 1e-9
"""What is exactly as far off as allowed must not fail by a last binary digit."""


@dataclass(frozen=True)
class Candidate:
    """A model in one precision, measured where it would be served.

    Attributes:
        name: of the trial that made it.
        values: what stays of the original, by what was searched; empty if all does.
        precision: that its products are computed in.
        score: the task's primary one on the validation rows.
        loss: on the same rows.
        latency_ms: for one text, tokenizing included.
        texts_per_second: 32 texts at a time.
        size: bytes of its folder.
        ratios: latency, throughput and size, each divided by that of the original in fp32, which was measured
            by turns with it.
    """

    name: str
    values: dict[str, Any]
    precision: Precision
    score: float
    loss: float
    latency_ms: float
    texts_per_second: float
    size: int
    ratios: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, from which `Candidate(**…)` makes it again."""
        return asdict(self)


class Choice(NamedTuple):
    """A candidate that was chosen.

    Attributes:
        candidate: which.
        rule: why, in words.
        reached: whether it meets the whole target.
    """

    candidate: Candidate
    rule: str
    reached: bool


def quality_loss(primary: str, score: float, original: float) -> float:
    """By how much a score is worse than the original's, as a fraction of that; negative if it is better."""
    difference = score - original if primary.endswith(SMALLER_IS_BETTER) else original - score
    return difference / abs(original) if original else difference


def shortfall(candidate: Candidate, target: TargetConfig) -> float:
    """How many times a candidate misses what it misses most of the target, without its quality: 1 is met."""
    missed = [
        wanted / candidate.ratios[name] if name in _LARGER_IS_BETTER else candidate.ratios[name] / wanted
        for name, wanted in target.ratios.items()
    ]
    return max(1.0, *missed)


def choose(candidates: Sequence[Candidate], primary: str, original: float, target: TargetConfig) -> Choice:
    """The candidate to take.

    Of those that meet the whole target, the one with the best score; of those that are equally good, the
    fastest or smallest. If none meets it, the one that comes closest among those that are good enough; if
    none is, the one with the best score.

    Args:
        candidates: at least one.
        primary: name of the score.
        original: its value for the original.
        target: what is wanted.
    """

    def loss(candidate: Candidate) -> float:
        return quality_loss(primary, candidate.score, original)

    good = [candidate for candidate in candidates if loss(candidate) <= target.max_quality_loss + _ROUNDING]
    reached = [candidate for candidate in good if shortfall(candidate, target) <= 1.0 + _ROUNDING]
    if reached:
        best = min(reached, key=lambda candidate: (loss(candidate), *costs(candidate, target)))
        return Choice(best, f"the best {primary} of {len(reached)} that reach the target", True)
    if good:
        best = min(good, key=lambda candidate: (shortfall(candidate, target), loss(candidate)))
        return Choice(best, f"the closest to the target of {len(good)} that are good enough", False)
    best = min(candidates, key=lambda candidate: (loss(candidate), *costs(candidate, target)))
    return Choice(best, f"the best {primary}, since none is good enough", False)


def costs(candidate: Candidate, target: TargetConfig) -> tuple[float, ...]:
    """What the target names, with signs so that less is better."""
    return tuple(
        -candidate.ratios[name] if name in _LARGER_IS_BETTER else candidate.ratios[name]
        for name in target.ratios
    )


def front(
    candidates: Sequence[Candidate], primary: str, original: float, target: TargetConfig
) -> list[Candidate]:
    """Those that no other one beats in score, or in what the target names, without being worse in another."""
    points = [
        (quality_loss(primary, candidate.score, original), *costs(candidate, target))
        for candidate in candidates
    ]

    def beaten(point: tuple[float, ...]) -> bool:
        return any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points
        )

    return [candidate for candidate, point in zip(candidates, points, strict=True) if not beaten(point)]
