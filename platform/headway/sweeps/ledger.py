"""The record of a sweep's trials on disk: whatever dies, no trial is lost, and no finished one runs again.

Each trial has a folder under `trials/`, named after its number: `trial.json` holds the values it was given,
`journal.jsonl` what it measured, `steps_per_round` a number, `model/` its model. `ended.json`, written last,
says how it ended.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from headway.data.atomic import write_atomically
from headway.runs.journal import Entry, read_journal


class TrialState(StrEnum):
    """How a trial stands; all states except RUNNING are final."""

    RUNNING = "running"
    """Not ended yet."""
    DONE = "done"
    """Trained to its end."""
    STOPPED = "stopped"
    """Ended early by the scheduler."""
    FAILED = "failed"
    """Could not train."""

    @property
    def is_terminal(self) -> bool:
        """Whether the trial has ended."""
        return self is not TrialState.RUNNING


class Ending(NamedTuple):
    """How a trial ended, and why if it failed."""

    state: TrialState
    reason: str


@dataclass(frozen=True)
class Trial:
    """One trial's folder."""

    folder: Path

    @property
    def number(self) -> int:
        """Its index in the order in which trials were made."""
        return int(self.folder.name)

    @property
    def name(self) -> str:
        """What it is called in MLflow."""
        return f"trial {self.folder.name}"

    @property
    def sampled(self) -> dict[str, Any]:
        """Dotted path → value."""
        values: dict[str, Any] = json.loads((self.folder / "trial.json").read_text(encoding="utf-8"))
        return values

    def begin(self, sampled: dict[str, Any]) -> None:
        """Record the values it trains with; population-based training changes them on the way."""
        write_atomically(self.folder / "trial.json", json.dumps(sampled))

    @property
    def steps_per_round(self) -> int:
        """Steps in what its scheduler counts as one round; known once it has begun to train."""
        return int((self.folder / "steps_per_round").read_text(encoding="utf-8"))

    def record_steps_per_round(self, steps: int) -> None:
        """Record how many steps a round has."""
        write_atomically(self.folder / "steps_per_round", str(steps))

    def round_of(self, step: int) -> int:
        """The round that a step is in, counted from 1."""
        return math.ceil(step / self.steps_per_round)

    @property
    def model(self) -> Path:
        """The folder of its model."""
        return self.folder / "model"

    @property
    def journal(self) -> Path:
        """The file of its measurements."""
        return self.folder / "journal.jsonl"

    def evaluations(self) -> list[Entry]:
        """What it measured on the validation rows after step 0, without the prefix `validation_`."""
        return [
            Entry(entry.step, validation_metrics(entry.metrics))
            for entry in read_journal(self.journal)
            if entry.step and "validation_loss" in entry.metrics
        ]

    @property
    def ended(self) -> Ending | None:
        """How it ended; None while it has not."""
        path = self.folder / "ended.json"
        if not path.is_file():
            return None
        row = json.loads(path.read_text(encoding="utf-8"))
        return Ending(TrialState(row["state"]), row["reason"])

    @property
    def state(self) -> TrialState:
        """How it stands now."""
        return self.ended.state if self.ended is not None else TrialState.RUNNING

    def end(self, state: TrialState, reason: str = "") -> None:
        """Record how it ended; the first record stays."""
        assert state.is_terminal
        if self.ended is None:
            write_atomically(self.folder / "ended.json", json.dumps({"state": state, "reason": reason}))


class Ledger:
    """All trials of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def trials(self) -> list[Trial]:
        """All trials that were ever given values, in their order."""
        return list(self._trials)

    def new(self, sampled: dict[str, Any]) -> Trial:
        """Make the next trial."""
        trial = Trial(self.folder / f"{len(self._trials):05d}")
        trial.begin(sampled)
        self._trials.append(trial)
        return trial

    @cached_property
    def _trials(self) -> list[Trial]:
        # Looked for once: only the driver makes trials, and a thousand folders take long to list.
        return [Trial(path.parent) for path in sorted(self.folder.glob("[0-9]*/trial.json"))]

    def known_as(self, tune_id: str, number: int) -> Trial:
        """The trial that Ray Tune knows by an id; `number` says which one when the id is first seen.

        A clone takes over all settings of another trial, its number too, but keeps its own id.
        """
        path = self.folder / "ids" / tune_id
        if not path.is_file():
            write_atomically(path, f"{number:05d}")
        return Trial(self.folder / path.read_text(encoding="utf-8"))

    def keep_only(self, winner: Trial) -> None:
        """Delete what only training needed, and the models of all other trials."""
        for trial in self.trials():
            names = ["best", "population", "state", "train"]
            for name in names if trial.folder == winner.folder else [*names, "model"]:
                shutil.rmtree(trial.folder / name, ignore_errors=True)
        shutil.rmtree(self.folder / "ids", ignore_errors=True)


def validation_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics measured on the validation rows, without the prefix `validation_`."""
    prefix = "validation_"
    return {name.removeprefix(prefix): v for name, v in metrics.items() if name.startswith(prefix)}
