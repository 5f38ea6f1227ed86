"""Trains the same job several times, with other seeds or on other folds, and says how scores spread."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headway.cluster import connect
from headway.cluster.worker_group import call_resources
from headway.engine.parallel.worker import Worker
from headway.runs.context import Context
from headway.runs.journal import Entry, JournalReader, read_journal
from headway.runs.paths import RunPaths
from headway.runs.system_metrics import SystemMetricsReader
from headway.runs.worker import TrainingJob, train_worker
from headway.tracking import Run
from headway.tracking.data_split import DataSplit


def train_variants(
    jobs: Mapping[str, TrainingJob], context: Context, parent: Run, data: Sequence[DataSplit]
) -> dict[str, list[Entry]]:
    """Train every job in its own process, on a part of the cluster; each is a child run of `parent`.

    Each leaves its journal and model in `variants/<name>` of the step's folder; a job that is already done is
    not trained again.

    Args:
        jobs: by name.
        context: of the step.
        parent: the step's run.
        data: rows that each job reads.

    Returns:
        The journal of each job.
    """
    folders = {name: (context.folder / "variants" / name).resolve() for name in jobs}
    context.join_cluster()
    resources = call_resources(len(jobs))
    totals = {name: job.config.total_steps(job.batches()[0]) for name, job in jobs.items()}
    steps = VariantSteps(folders, totals)

    def progress(done: int) -> None:
        context.display.trainings(context.step, steps.read())

    calls = [(job, folders[name], resources.cpus) for name, job in jobs.items()]
    connect.map_on_cluster(train_variant, calls, resources.cpus, resources.gpus, progress)
    progress(len(jobs))
    context.display.settle()
    entries = {name: read_journal(RunPaths.at(folder).journal) for name, folder in folders.items()}
    tracking = context.tracking.patient()
    logged = tracking.children(parent)
    for name, job in jobs.items():
        child = logged.get(name)  # that of an earlier driver of this step
        if child is None:
            settings = job.config.model_dump(mode="json")
            run_name = f"{context.step} {name}"
            child = tracking.start_run(context.experiment, run_name, settings, parent, token=name)
            child.log_inputs(data)
        measured = entries[name] + SystemMetricsReader(folders[name]).unread()
        child.log_metrics([entry[:2] for entry in measured], [entry.time for entry in measured])
        child.close()
    return entries


class VariantSteps:
    """Reads from the journals of several runs how far each has come.

    Args:
        folders: of the runs, by name.
        totals: steps of each whole run.
    """

    def __init__(self, folders: Mapping[str, Path], totals: Mapping[str, int]) -> None:
        self._folders, self._totals = folders, totals
        self._readers = {name: JournalReader(RunPaths.at(folder).journal) for name, folder in folders.items()}
        self._steps = dict.fromkeys(folders, 0)

    def read(self) -> dict[str, tuple[int, int]]:
        """Steps done and steps of the whole run, by name; a run that ended early has done all of them."""
        for name, reader in self._readers.items():
            for entry in reader.unread():
                self._steps[name] = entry.step
            if (self._folders[name] / "model").is_dir():
                self._steps[name] = self._totals[name]
        return {name: (step, self._totals[name]) for name, step in self._steps.items()}


def train_variant(job: TrainingJob, folder: Path, threads: int) -> None:
    """Train a job in this process, with this many threads, unless its model exists."""
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").is_dir():
        train_worker(job, RunPaths.at(folder), Worker(), time.time())
    shutil.rmtree(folder / "state", ignore_errors=True)


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and sample standard deviation, which is 0 for a single value.

    What is not a number, as the score of a fold in which there is nothing to score, is left out of both.
    """
    numbers = [value for value in values if not math.isnan(value)]
    mean = statistics.fmean(numbers) if numbers else math.nan
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return {"mean": mean, "std": deviation, "values": values}


def spreads(measured: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """The spread of each measure over several runs."""
    return {name: spread([row[name] for row in measured]) for name in measured[0]}
