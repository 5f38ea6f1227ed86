"""What is known of a sweep's trials, on disk: whatever dies, no finished trial is run again and none is lost.

Each trial has a folder of its number under `trials/`: `trial.json`, the values it was given; `journal.jsonl`,
what it measured; `steps_per_round`; `model/`; and `ended.json`, written last, how it ended.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headway.data.atomic import write_atomically
from headway.runs.journal import Entry, read_journal

State = Literal["waiting", "running", "done", "stopped", "failed"]
"""Of a trial: done is trained to its end; stopped, ended early by the scheduler."""


@dataclass(frozen=True)
class Trial:
    """One trial's folder."""

    folder: Path

    @property
    def number(self) -> int:
        """Its place in the order in which trials were made, from 0."""
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """What it is called in MLflow."""
        return f"trial {self.folder.name}"

    @property
    def sampled(self) -> dict[str, Any]:
        """Dotted path → value."""
        found: dict[str, Any] = json.loads((self.folder / "trial.json").read_text(encoding="utf-8"))
        return found

    def begin(self, sampled: dict[str, Any]) -> None:
        """Note the values it trains with; population-based training changes them on the way."""
        write_atomically(self.folder / "trial.json", json.dumps(sampled))

    @property
    def steps_per_round(self) -> int:
        """Steps in what its scheduler counts as one round; known from when it begins to train."""
        return int((self.folder / "steps_per_round").read_text(encoding="utf-8"))

    def note_round(self, steps: int) -> None:
        """Note how many steps a round is."""
        write_atomically(self.folder / "steps_per_round", str(steps))

    def round_of(self, step: int) -> int:
        """The round that this step is in, from 1."""
        return math.ceil(step / self.steps_per_round)

    @property
    def model(self) -> Path:
        """Where its model goes."""
        return self.folder / "model"

    @property
    def journal(self) -> Path:
        """Where its measurements go."""
        return self.folder / "journal.jsonl"

    def evaluations(self) -> list[Entry]:
        """What it measured on the validation rows once it had learnt something, without the prefix."""
        return [
            Entry(entry.step, validation_metrics(entry.metrics))
            for entry in read_journal(self.journal)
            if entry.step and "validation_loss" in entry.metrics
        ]

    @property
    def ended(self) -> dict[str, Any] | None:
        """How it ended: `state` and `reason`; None while it has not."""
        path = self.folder / "ended.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def end(self, state: State, reason: str = "") -> None:
        """Note how it ended; what was noted first stays."""
        if self.ended is None:
            write_atomically(self.folder / "ended.json", json.dumps({"state": state, "reason": reason}))


class Ledger:
    """All trials of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def trials(self) -> list[Trial]:
        """Those that were ever given values, in their order."""
        return [Trial(path.parent) for path in sorted(self.folder.glob("[0-9]*/trial.json"))]

    def new(self, sampled: dict[str, Any]) -> Trial:
        """The next trial."""
        trial = Trial(self.folder / f"{len(self.trials()):05d}")
        trial.begin(sampled)
        return trial

    def known_as(self, tune_id: str, number: int) -> Trial:
        """The trial that Ray Tune knows by a name; `number` says which when the name is first met.

        A clone takes over all of another trial's settings, its number too, but keeps its own name.
        """
        path = self.folder / "ids" / tune_id
        if not path.is_file():
            write_atomically(path, f"{number:05d}")
        return Trial(self.folder / path.read_text(encoding="utf-8"))

    def keep_only(self, winner: Trial) -> None:
        """Throw away what only training needed, and the models of all other trials."""
        for trial in self.trials():
            names = ["best", "population", "train"]
            for name in names if trial.folder == winner.folder else [*names, "model"]:
                shutil.rmtree(trial.folder / name, ignore_errors=True)
        shutil.rmtree(self.folder / "ids", ignore_errors=True)


def validation_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Those of the validation rows, without the prefix."""
    prefix = "validation_"
    return {name.removeprefix(prefix): v for name, v in metrics.items() if name.startswith(prefix)}
