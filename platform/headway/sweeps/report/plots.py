"""Draws a sweep: curves, parallel coordinates, Pareto front, importances, and a page with the leaderboard."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path
from typing import Any

from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.winner import Measured, mode_of
from headway.tracking import Run

_COLOURS = {
    TrialState.DONE: "tab:blue",
    TrialState.STOPPED: "tab:gray",
    TrialState.FAILED: "tab:red",
    TrialState.RUNNING: "tab:orange",
}


def write_report(
    ledger: Ledger,
    paths: list[str],
    metrics: list[str],
    folder: Path,
    run: Run,
    winner: Measured,
    front: list[Measured],
) -> dict[str, Path]:
    """Draw the sweep, write `leaderboard.html`, and log all of it as artifacts of its run.

    Returns:
        The files, by name.
    """
    trials = [trial for trial in ledger.trials() if trial.evaluations()]
    metric = metrics[0]
    sign = -1.0 if mode_of(metric) == "max" else 1.0
    trials.sort(key=lambda trial: sign * _final(trial, metric))
    figures = {
        "curves": _curves(trials, [metric, "loss"]),
        "parallel_coordinates": _parallel_coordinates(trials, paths, metric),
    }
    if front:
        figures["pareto"] = _pareto(trials, front, winner, metrics)
    weights = importances(trials, paths, metric)
    if weights:
        figures["importances"] = _importances(weights)
    files = {}
    for name, figure in figures.items():
        files[name] = folder / f"{name}.png"
        figure.savefig(files[name], dpi=120)
    files["leaderboard"] = folder / "leaderboard.html"
    files["leaderboard"].write_text(
        _page(trials, paths, metrics, figures, [m.trial.folder for m in front]), encoding="utf-8"
    )
    for path in files.values():
        run.log_file(path)
    return files


def importances(trials: list[Trial], paths: list[str], metric: str) -> dict[str, float]:
    """How much of the metric's variance each setting explains: fANOVA (Hutter et al. 2014), by Optuna.

    Empty if there is too little to tell: fewer than four trials, or all equally good.
    """
    import optuna

    finals = [_final(trial, metric) for trial in trials]
    if len(trials) < 4 or len(set(finals)) < 2:
        return {}
    # Of a setting that only some trials searched, the rest of the variance tells nothing.
    searched = [path for path in paths if all(path in trial.sampled for trial in trials)]
    columns = {path: [trial.sampled[path] for trial in trials] for path in searched}
    columns = {path: values for path, values in columns.items() if len(set(map(str, values))) > 1}
    if not columns:
        return {}
    distributions = {path: _distribution(values) for path, values in columns.items()}
    study = optuna.create_study(direction="maximize")
    for index, final in enumerate(finals):
        params = {path: _coordinate(values[index], values) for path, values in columns.items()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=final))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _distribution(values: list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, float) for value in values):
        # Values that span decades were most likely searched on a logarithmic scale.
        return FloatDistribution(min(values), max(values), log=_spans_decades(values))
    return CategoricalDistribution(sorted(set(map(str, values))))


def _coordinate(value: Any, values: list[Any]) -> Any:
    return value if all(isinstance(other, float) for other in values) else str(value)


def _spans_decades(values: list[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 10


def _final(trial: Trial, metric: str) -> float:
    return float(trial.evaluations()[-1].metrics.get(metric, math.nan))


def _figure(width: float, height: float) -> Any:
    # The object interface draws without a display, and leaves no state behind.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _curves(trials: list[Trial], names: list[str]) -> Any:
    measures = list(dict.fromkeys(names))
    figure = _figure(6.0 * len(measures), 4.0)
    for axes, measure in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        for trial in trials:
            measured = trial.evaluations()
            values = [entry.metrics.get(measure, math.nan) for entry in measured]
            steps = [entry.step for entry in measured]
            axes.plot(steps, values, marker=".", alpha=0.8, color=_COLOURS[trial.state])
        axes.set(xlabel="steps", ylabel=f"validation {measure.replace('_', ' ')}")
        axes.grid(alpha=0.3)
    return figure


def _parallel_coordinates(trials: list[Trial], paths: list[str], metric: str) -> Any:
    """An axis for each setting and one for the metric; each trial is a line, coloured by its score."""
    from matplotlib import colormaps

    figure = _figure(2.0 + 1.8 * len(paths), 4.5)
    axes = figure.subplots()
    columns = [[trial.sampled.get(path, math.nan) for trial in trials] for path in paths]
    columns.append([_final(trial, metric) for trial in trials])
    scaled = [_scaled(column) for column in columns]
    for index in range(len(trials)):
        colour = colormaps["viridis"](scaled[-1][0][index])
        axes.plot(range(len(columns)), [heights[index] for heights, _ in scaled], color=colour, alpha=0.8)
    for x, (_, ticks) in enumerate(scaled):
        axes.axvline(x, color="black", linewidth=0.8)
        for height, text in ticks:
            axes.text(x + 0.03, height, text, fontsize=7, va="center")
    axes.set_xticks(range(len(columns)), [*paths, metric], rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(columns) - 0.5)
    return figure


def _scaled(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights in 0 … 1 of values on one axis, and its ticks; NaN has none, and leaves a gap in its line."""
    present = [value for value in values if not (isinstance(value, float) and math.isnan(value))]
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        names = sorted(set(map(str, present)))
        heights = {name: (index + 0.5) / len(names) for index, name in enumerate(names)}
        ticks = [(height, name) for name, height in heights.items()]
        return [heights.get(str(value), math.nan) for value in values], ticks
    if not present:
        return values, []
    log = _spans_decades(present)
    numbers = [math.log(value) if log else float(value) for value in values]
    ends = [(math.log(end) if log else float(end), end) for end in (min(present), max(present))]
    low = ends[0][0]
    span = (ends[1][0] - low) or 1.0
    ticks = [((number - low) / span, f"{value:.3g}") for number, value in ends]
    return [(number - low) / span for number in numbers], ticks


def _pareto(trials: list[Trial], front: list[Measured], winner: Measured, metrics: list[str]) -> Any:
    """The first two metrics against each other: all trials, the Pareto front, and the winner."""
    first, second = metrics[:2]
    figure = _figure(6.0, 4.0)
    axes = figure.subplots()
    axes.scatter([_final(t, second) for t in trials], [_final(t, first) for t in trials], color="tab:gray")
    points = sorted((trial.metrics[second], trial.metrics[first]) for trial in front)
    axes.plot(*zip(*points, strict=True), marker="o", color="tab:blue", label="Pareto front")
    best = winner.metrics
    axes.plot(best[second], best[first], marker="*", markersize=14, color="tab:red", ls="", label="winner")
    axes.set(xlabel=second.replace("_", " "), ylabel=f"validation {first.replace('_', ' ')}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _importances(weights: dict[str, float]) -> Any:
    figure = _figure(6.0, 1.0 + 0.4 * len(weights))
    axes = figure.subplots()
    names = list(weights)[::-1]
    axes.barh(names, [weights[name] for name in names])
    axes.set(xlabel="fraction of the variance explained")
    return figure


def _page(
    trials: list[Trial], paths: list[str], metrics: list[str], figures: dict[str, Any], front: list[Path]
) -> str:
    """One self-contained file: the table, and the pictures below it."""
    measures = list(dict.fromkeys([*metrics, "loss"]))
    head = ["", "trial", *paths, "step", *measures, "state"]
    rows = [_cells(rank, trial, paths, measures, front) for rank, trial in enumerate(trials, start=1)]
    table = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    pictures = "".join(
        f"<h2>{name.replace('_', ' ')}</h2><img alt='{name}' src='data:image/png;base64,{_encoded(figure)}'>"
        for name, figure in figures.items()
    )
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Sweep</title><style>"
        "body{font:14px system-ui,sans-serif;margin:2rem auto;max-width:70rem}img{max-width:100%}"
        "table{border-collapse:collapse}"
        "td,th{padding:.3rem .8rem;border-bottom:1px solid #ddd;text-align:left}"
        f"</style><h1>Sweep</h1><table><tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"
        f"{table}</table>{pictures}</html>\n"
    )


def _cells(rank: int, trial: Trial, paths: list[str], measures: list[str], front: list[Path]) -> list[str]:
    last = trial.evaluations()[-1]
    values = [_brief(trial.sampled.get(path, "")) for path in paths]
    scores = [f"{last.metrics.get(name, math.nan):.4f}" for name in measures]
    state = trial.state + (", Pareto front" if trial.folder in front else "")
    return [str(rank), trial.folder.name, *values, str(last.step), *scores, state]


def _brief(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _encoded(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
