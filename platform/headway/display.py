"""Shows progress: live on a terminal, otherwise in plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

_LINE_EVERY_SECONDS = 5.0
_SAME_LINE_EVERY_SECONDS = 60.0
"""So that a log says that something still works, and little more."""
_BAR = 24
"""Characters of a bar of progress."""


class Display:
    """Writes to standard output; `quiet` writes nothing."""

    def __init__(self, quiet: bool = False) -> None:
        # Without a terminal, rich would wrap at 80 columns and break lines that tools read.
        width = None if sys.stdout.isatty() else 200
        self.console = Console(quiet=quiet, highlight=False, width=width, soft_wrap=width is not None)
        self._live: Live | None = None
        self._last_line = ("", 0.0)  # and when it was printed
        self._began: dict[str, tuple[int, float]] = {}

    def line(self, text: str, style: str = "") -> None:
        """Print a line."""
        self.console.print(Text(text, style=style))

    def step(self, name: str, text: str) -> None:
        """Print a line about a step of a pipeline."""
        self.console.print(Text.assemble((f"{name:<9} ", "bold cyan"), text))

    def training(self, name: str, step: int, total: int, metrics: Mapping[str, float]) -> None:
        """Show how far training is; overwritten on a terminal, otherwise a line every few seconds.

        The time left is estimated from the first call for `name` on, without the start of workers and the
        steps of an earlier, interrupted run.
        """
        now = time.monotonic()
        line = _training_line(step, total, metrics, self._seconds_left(name, step, total, now))
        self._progress(name, line, now, is_last=step == total)

    def trainings(self, name: str, runs: Mapping[str, tuple[int, int]]) -> None:
        """How far each of a step's runs has come; shown as `training` shows one.

        Args:
            name: of the step.
            runs: each run's name → steps done, steps of the whole run. The time left is that of all runs
                together, at the pace of all so far.
        """
        now = time.monotonic()
        step, total = (sum(counts) for counts in zip(*runs.values(), strict=True))
        parts = [f"{run} step {done}/{steps}" for run, (done, steps) in runs.items()]
        left = self._seconds_left(name, step, total, now)
        if left is not None:
            parts.append(f"{duration(left)} left")
        self._progress(name, "  ".join(parts), now, is_last=step == total)

    def preparing(self, name: str, stage: str, done: int, total: int, counts: Mapping[str, int]) -> None:
        """Show how far a stage of preparing data has come; shown as `training` shows steps.

        Args:
            name: of the step.
            stage: what is done now.
            done: pieces of work, or bytes if there are counts of `bytes`.
            total: of these.
            counts: what there is so far, each shown with its pace since the stage began.
        """
        now = time.monotonic()
        first, began = self._began.setdefault(f"{name} {stage}", (done, now))
        seconds = now - began
        parts = [f"{stage} {done / max(total, 1):.0%}"]
        for what, count in counts.items():
            amount = f"{count / 1e6:,.1f} MB" if what == "bytes" else f"{count:,} {what}"
            pace = count * (done - first) / max(done, 1) / seconds if seconds > 1 else 0.0
            shown = f"{pace / 1e6:,.1f} MB/s" if what == "bytes" else f"{pace:,.0f}/s"
            parts.append(f"{amount} ({shown})" if pace >= 1 and what != "dropped" else amount)
        if first < done < total:
            parts.append(f"{duration(seconds / (done - first) * (total - done))} left")
        self._progress(name, "  ".join(parts), now)

    def counted(self, name: str, done: int, total: int, unit: str) -> None:
        """Show how much of something is done, with its rate and the time left; shown as `training` shows it.

        Args:
            name: of the step.
            done: how many, those of an earlier, interrupted run included.
            total: how many there are.
            unit: what is counted, such as "texts".
        """
        now = time.monotonic()
        left = self._seconds_left(name, done, total, now)
        first, began = self._began[name]
        filled = _BAR * done // max(total, 1)
        parts = [f"{'━' * filled}{'┄' * (_BAR - filled)} {done / max(total, 1):4.0%}"]
        parts.append(f"{done:,}/{total:,} {unit}")
        if now > began and done > first:
            parts.append(f"{(done - first) / (now - began):,.0f} {unit}/s")
        if left is not None:
            parts.append(f"{duration(left)} left")
        self._progress(name, "  ".join(parts), now, is_last=done == total)

    def waiting(self, name: str, text: str) -> None:
        """What a step waits for; shown as `training` shows how far it has come."""
        self._progress(name, text, time.monotonic())

    def live_table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Redraw a table at each call on a terminal; otherwise show nothing until `table`."""
        if self.console.is_terminal:
            self._show(_table(title, columns, rows))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print a table."""
        self.settle()
        self.console.print(_table(title, columns, rows))

    def settle(self) -> None:
        """Leave the last live view on the screen, and continue below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _seconds_left(self, name: str, step: int, total: int, now: float) -> float | None:
        """By the pace since the first call for `name`; None at the start and at the end."""
        first_step, began = self._began.setdefault(name, (step, now))
        return (now - began) / (step - first_step) * (total - step) if first_step < step < total else None

    def _progress(self, name: str, line: str, now: float, is_last: bool = False) -> None:
        text = Text.assemble((f"{name:<9} ", "bold cyan"), line)
        if self.console.is_terminal:
            self._show(text)
            return
        last, printed = self._last_line
        pause = _SAME_LINE_EVERY_SECONDS if text.plain == last else _LINE_EVERY_SECONDS
        if now - printed > pause or (is_last and text.plain != last):
            self._last_line = (text.plain, now)
            self.console.print(text)

    def _show(self, renderable: Any) -> None:
        if self._live is None:
            self._live = Live(console=self.console, refresh_per_second=8)
            self._live.start()
        self._live.update(renderable)


def _training_line(step: int, total: int, metrics: Mapping[str, float], seconds_left: float | None) -> str:
    parts = [f"step {step}/{total}"]
    parts += [
        f"{name.removesuffix('_loss')} loss {value:.3f}"
        for name, value in metrics.items()
        if name.endswith("_loss") and not name.startswith("validation")
    ]
    if "validation_loss" in metrics:
        parts.append(f"validation loss {metrics['validation_loss']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if seconds_left is not None:
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    return table
