"""Tells what a search found: all candidates as a table, and the Pareto front as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from headway.compress.search.candidates import Candidate, Choice, costs, front, quality_loss
from headway.config.compression.compress import TargetConfig

_COLOURS = {"int8": "tab:blue"}


class Original(NamedTuple):
    """What is made smaller.

    Attributes:
        score: the primary one on the validation rows, in fp32.
        latency_ms: for one text.
        texts_per_second: 32 texts at a time.
        size: bytes of its folder.
    """

    score: float
    latency_ms: float
    texts_per_second: float
    size: int


class Findings(NamedTuple):
    """What a search found.

    Attributes:
        primary: name of the score.
        original: what was made smaller.
        candidates: all that were measured.
        choice: the one that is taken.
        target: what was wanted.
    """

    primary: str
    original: Original
    candidates: Sequence[Candidate]
    choice: Choice
    target: TargetConfig

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front, the fastest or smallest first."""
        found = front(self.candidates, self.primary, self.original.score, self.target)
        return sorted(found, key=lambda candidate: costs(candidate, self.target))

    def loss(self, candidate: Candidate) -> float:
        """By how much a candidate is worse than the original, as a fraction of its score."""
        return quality_loss(self.primary, candidate.score, self.original.score)


def table(findings: Findings) -> tuple[list[str], list[list[str]]]:
    """Titles of columns, and a row for the original and each candidate, the best scores first.

    In the first column `*` marks the Pareto front, and `→` the one that is taken.
    """
    searched = list(dict.fromkeys(path for one in findings.candidates for path in one.values))
    columns = ["", "candidate", *searched, "precision", findings.primary, "worse by"]
    columns += ["ms a text", "x", "texts/s", "x", "MB", "x"]
    original = findings.original
    rows = [["", "original", *["" for _ in searched], "fp32", f"{original.score:.4f}", ""]]
    rows[0] += [f"{original.latency_ms:.2f}", "1.00", f"{original.texts_per_second:.0f}", "1.00"]
    rows[0] += [f"{original.size / 1e6:.1f}", "1.00"]
    members = findings.front
    for candidate in sorted(findings.candidates, key=findings.loss):
        mark = "*" if candidate in members else ""
        row = ["→" if candidate == findings.choice.candidate else mark, candidate.name]
        row += [str(candidate.values.get(path, "all")) for path in searched]
        row += [candidate.precision, f"{candidate.score:.4f}", f"{findings.loss(candidate):.1%}"]
        ratios = [f"{candidate.ratios[name]:.2f}" for name in ("latency", "throughput", "size")]
        figures = [f"{candidate.latency_ms:.2f}", f"{candidate.texts_per_second:.0f}"]
        figures.append(f"{candidate.size / 1e6:.1f}")
        row += [cell for pair in zip(figures, ratios, strict=True) for cell in pair]
        rows.append(row)
    return columns, rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---" for _ in columns], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(findings: Findings) -> str:
    """All that was measured of each candidate, as CSV."""
    searched = list(dict.fromkeys(path for one in findings.candidates for path in one.values))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    measured = ["score", "loss", "latency_ms", "texts_per_second", "size"]
    ratios = ["latency", "throughput", "size"]
    writer.writerow(
        ["candidate", *searched, "precision", *measured, *(f"{name}_ratio" for name in ratios), "on_front"]
    )
    members = findings.front
    for one in findings.candidates:
        row = [one.name, *(one.values.get(path, "") for path in searched), one.precision]
        row += [getattr(one, name) for name in measured] + [one.ratios[name] for name in ratios]
        writer.writerow([*row, one in members])
    return stream.getvalue()


def draw(findings: Findings, folder: Path) -> Path:
    """The first thing that the target names against the score: candidates, their front, and the target."""
    # The object interface draws without a display, and leaves no state behind.
    from matplotlib.figure import Figure

    name = next(iter(findings.target.ratios))
    figure: Any = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.subplots()
    for candidate in findings.candidates:
        colour = _COLOURS.get(candidate.precision, "tab:gray")
        axes.scatter(candidate.ratios[name], candidate.score, color=colour, zorder=2)
        layers = candidate.values.get("layers")
        if layers is not None:
            axes.annotate(f" {layers}", (candidate.ratios[name], candidate.score), fontsize=8)
    for precision in sorted({candidate.precision for candidate in findings.candidates}):
        axes.scatter([], [], color=_COLOURS.get(precision, "tab:gray"), label=precision)
    points = [(candidate.ratios[name], candidate.score) for candidate in findings.front]
    axes.plot(*zip(*sorted(points), strict=True), color="tab:green", lw=1.0, label="Pareto front", zorder=1)
    axes.scatter(1.0, findings.original.score, marker="s", color="black", label="original, fp32")
    taken = findings.choice.candidate
    axes.plot(taken.ratios[name], taken.score, marker="*", ms=14, color="tab:red", ls="", label="taken")
    axes.axvline(findings.target.ratios[name], color="tab:orange", ls=":", label="target")
    axes.axhline(_lowest_allowed(findings), color="tab:orange", ls=":")
    score = findings.primary.replace("_", " ")
    axes.set(xscale="log", xlabel=f"{name}, times the original's", ylabel=f"validation {score}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    path = folder / "pareto.png"
    figure.savefig(path, dpi=120)
    return path


def _lowest_allowed(findings: Findings) -> float:
    """The score with all of the loss that the target allows."""
    original = findings.original.score
    change = findings.target.max_quality_loss * abs(original)
    is_larger_better = quality_loss(findings.primary, 0.0, 1.0) > 0
    return original - change if is_larger_better else original + change
