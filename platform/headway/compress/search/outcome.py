"""Measures what a trial has made, and what is left of all trials at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from headway.compress.search.candidates import RATIOS, Candidate, choose
from headway.compress.search.job import SearchJob
from headway.compress.search.measuring import (
    Speed,
    answering,
    float_precision,
    folder_bytes,
    quantised,
    sample_texts,
    served_scores,
    speeds,
)
from headway.config.base import ConfigError
from headway.config.serve import Precision
from headway.data.atomic import write_atomically
from headway.engine.formats.packed import is_packed, pack_folder
from headway.engine.inference.int8 import FILE as INT8
from headway.runs.journal import Journal, read_journal
from headway.sweeps.ledger import Trial

_CANDIDATES = "candidates.json"
_LAST = f"validation_{RATIOS[0]}_ratio"
"""Only what a candidate is judged by at its end has it."""


def measured(job: SearchJob, trial: Trial) -> list[Candidate]:
    """The trial's model in each precision, beside the original; kept for a restart."""
    path = trial.folder / _CANDIDATES
    if path.is_file():
        return candidates_of(trial)
    wanted = job.config.precisions
    precisions: dict[str, Precision] = {}
    if "float" in wanted:
        precisions["float"] = float_precision()
    rows = job.base.task.split("train")
    count = min(job.config.calibration_rows, len(rows))
    if "int8" in wanted and quantised(trial.model, rows.take(i * len(rows) // count for i in range(count))):
        precisions["int8"] = "int8"
    bits = job.config.weight_bits
    if bits is not None and not is_packed(trial.model):
        pack_folder(trial.model, bits)  # last, since scales for int8 are measured on floats
    if not precisions:
        raise ConfigError(f"precisions: {list(wanted)}, but the layers cannot multiply integers here")
    found, _ = measured_beside(job, {name: (trial, one) for name, one in precisions.items()})
    best = choose(found, job.base.task.primary, job.score, job.config.target).candidate
    if best.precision != "int8":
        (trial.model / INT8).unlink(missing_ok=True)
    found.sort(key=lambda candidate: candidate is not best)
    write_atomically(path, json.dumps([candidate.as_dict() for candidate in found]))
    return found


def measured_beside(
    job: SearchJob,
    models: dict[str, tuple[Trial, Precision]],
    scored: dict[str, tuple[float, float]] | None = None,
) -> tuple[list[Candidate], Speed]:
    """Candidates, timed by turns with the original in fp32; and how fast that was.

    Args:
        job: with the original.
        models: the trials that made them, and the precisions that they are computed in.
        scored: their scores and losses, if they are known.
    """
    answers = {"": answering(job.original, "fp32")}
    answers |= {name: answering(trial.model, precision) for name, (trial, precision) in models.items()}
    timed = speeds(answers, sample_texts(job.base.task.split("validation")))
    original, size = timed.pop(""), folder_bytes(job.original)
    found = []
    for name, speed in timed.items():
        trial, precision = models[name]
        if scored is None:
            task = job.task_of(trial.model)
            scores = served_scores(trial.model, precision, task, "validation")
            score, loss = scores[task.primary], scores["loss"]
        else:
            score, loss = scored[name]
        own = folder_bytes(trial.model)
        if precision != "int8" and (trial.model / INT8).is_file():
            own -= (trial.model / INT8).stat().st_size
        ratios = _ratios(speed, own, original, size)
        found.append(Candidate(trial.folder.name, trial.sampled, precision, score, loss, *speed, own, ratios))
    return found, original


def _ratios(speed: Speed, size: int, original: Speed, original_size: int) -> dict[str, float]:
    values = (
        speed.latency_ms / original.latency_ms,
        speed.texts_per_second / original.texts_per_second,
        size / original_size,
    )
    return dict(zip(RATIOS, values, strict=True))


def measure_again(job: SearchJob, trials: Sequence[Trial], threads: int | None = None) -> dict[str, Any]:
    """Measure models that are left once more, all by turns with the original and with nothing beside them.

    Args:
        job: with the original.
        trials: that made them; each is measured in the precision that it keeps.
        threads: to compute with; if None, as many as PyTorch takes.

    Returns:
        `candidates`, as `Candidate.as_dict` gives them, and `original`: its `Speed`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    kept = {trial: candidates_of(trial)[0] for trial in trials}
    models: dict[str, tuple[Trial, Any]] = {
        candidate.name: (trial, candidate.precision) for trial, candidate in kept.items()
    }
    scored = {candidate.name: (candidate.score, candidate.loss) for candidate in kept.values()}
    found, original = measured_beside(job, models, scored)
    return {"candidates": [candidate.as_dict() for candidate in found], "original": list(original)}


def candidates_of(trial: Trial) -> list[Candidate]:
    """What was measured of a trial's model, the precision that it keeps first; nothing if nothing was yet."""
    path = trial.folder / _CANDIDATES
    if not path.is_file():
        return []
    return [Candidate(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def record(job: SearchJob, trial: Trial, measured: list[Candidate]) -> dict[str, Any]:
    """Write what the trial is judged by into its journal, as the last of its evaluations."""
    best = measured[0]
    metrics = {job.base.task.primary: best.score, "loss": best.loss}
    metrics |= {f"{name}_ratio": ratio for name, ratio in best.ratios.items()}
    # If an earlier process wrote it already, it is written again in its place.
    before = [entry.step for entry in read_journal(trial.journal) if _LAST not in entry.metrics]
    step = max(before, default=0) + 1
    Journal(trial.journal, step - 1).append(step, {f"validation_{name}": v for name, v in metrics.items()})
    trial.record_steps_per_round(step)
    return {"step": step, "round": 1, **metrics}
