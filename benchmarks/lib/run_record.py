"""What a run left on disk, and whether two runs are the same to the bit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headway.runs.journal import Entry, read_journal
from headway.tracking import Tracking

NAME = "drill"
TIMINGS = {"tokens_per_second", "utilisation", "peak_memory_gib", "startup_seconds"}


class RunRecord:
    """The pretraining step of a pipeline called `drill`, as `--runs` shows it.

    Args:
        runs: what `--runs` names.
    """

    def __init__(self, runs: Path) -> None:
        self.runs = runs

    def folders(self) -> list[Path]:
        """Of the pretraining step; empty before it began."""
        return list((self.runs / NAME / "pretrain").glob("*"))

    @property
    def folder(self) -> Path:
        """Of the pretraining step."""
        return self.folders()[0]

    def trained(self) -> list[Entry]:
        """The journal's entries of training steps; empty before the first."""
        entries = [entry for folder in self.folders() for entry in read_journal(folder / "journal.jsonl")]
        return [entry for entry in entries if "mlm_loss" in entry.metrics]

    def step(self) -> int:
        """Steps done."""
        return max((entry.step for entry in self.trained()), default=0)

    def starts(self) -> int:
        """A number that changes when a group of workers starts: each replaces the journal's file."""
        return (self.folder / "journal.jsonl").stat().st_ino

    def is_saving(self) -> bool:
        """Whether a state is being written at this moment."""
        states = list((self.folder / "state").glob("step-*"))
        return any(not (state / "manifest.json").exists() for state in states)

    def history(self) -> dict[str, list[tuple[int, float]]]:
        """Every metric of the one MLflow run, timings left out."""
        client = Tracking.at(self.runs).client
        experiment = client.get_experiment_by_name(NAME).experiment_id
        [run] = client.search_runs([experiment], "attributes.run_name = 'pretrain'")
        return {
            name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
            if name not in TIMINGS
        }

    def rows_by_step(self) -> dict[int, list[int]]:
        """The row ids that each step trained on, over all workers of the last group that did it.

        Raises:
            ValueError: a step that a group of the same size did again saw other rows.
        """
        sizes = self.group_size_by_step()
        steps: dict[int, list[int]] = {}
        seen: dict[tuple[int, int, int], list[int]] = {}
        for rank, line in self._row_log():
            key = (line["step"], line["world_size"], rank)
            if seen.setdefault(key, line["rows"]) != line["rows"]:
                raise ValueError(f"step {line['step']} saw other rows when it was done again")
        for (step, size, _), rows in sorted(seen.items()):
            if size == sizes[step]:
                steps.setdefault(step, []).extend(rows)
        return steps

    def group_size_by_step(self) -> dict[int, int]:
        """How many workers did each step, the last time that it was done."""
        return {line["step"]: line["world_size"] for rank, line in self._row_log() if rank == 0}

    def _row_log(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rank and line of all that the workers logged of their rows."""
        for path in (self.folder / "rows").glob("*.jsonl"):
            for line in path.read_text().splitlines():
                yield int(path.stem), json.loads(line)


def seen_once_an_epoch(steps: dict[int, list[int]], rows: int, total_steps: int) -> bool:
    """Whether no row is ever seen a second time before all others are seen as often, step after step."""
    counts: Counter[int] = Counter(dict.fromkeys(range(rows), 0))
    for step in range(total_steps):
        counts.update(steps[step])
        if len(counts) != rows or max(counts.values()) - min(counts.values()) > 1:
            return False
    return True


def compare(run: RunRecord, untouched: RunRecord, steps: int) -> dict[str, bool]:
    """Whether the two runs are the same to the bit, and each row was seen once an epoch."""
    weights = [(one.folder / "model" / "model.safetensors").read_bytes() for one in (run, untouched)]
    summary = json.loads((run.runs / NAME / "summary.json").read_text())
    seen = run.rows_by_step()
    return {
        "identical": weights[0] == weights[1] and run.history() == untouched.history(),
        "rows_seen_once": seen_once_an_epoch(seen, summary["pretrain"]["rows"], steps)
        and seen == untouched.rows_by_step(),
    }
