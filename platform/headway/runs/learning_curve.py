"""Draws a learning curve: score against number of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_NAMES = {"random_init": "random weights", "tfidf": "TF-IDF", "frozen": "frozen encoder", "setfit": "SetFit"}


def draw_learning_curve(few_labels: dict[str, dict[str, Any]], measure: str, unit: str, folder: Path) -> Path:
    """Draw mean and standard deviation over seeds of each kind of model.

    Args:
        few_labels: how many labels → kind of model → mean and standard deviation of the score.
        measure: name of the score.
        unit: what the labels are counted in: labels per class, or rows.
        folder: where `learning_curve.png` goes.
    """
    # The object interface draws without a display, and leaves no state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    labels = [int(count) for count in few_labels]
    for kind in next(iter(few_labels.values())):
        means = [row[kind]["mean"] for row in few_labels.values()]
        deviations = [row[kind]["std"] for row in few_labels.values()]
        axes.errorbar(labels, means, yerr=deviations, marker="o", capsize=3, label=_NAMES.get(kind, kind))
    axes.set(xlabel=unit, ylabel=measure.replace("_", " "), xscale="log", xticks=labels)
    axes.set_xticks(labels, [str(count) for count in labels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / "learning_curve.png"
    figure.savefig(path, dpi=150)
    return path
