"""Which trial wins, by one metric and by several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from transformers import AutoConfig

from headway.config.finetune import FinetuneConfig
from headway.config.loading import validate
from headway.config.sweep import SweepConfig
from headway.runs.journal import Journal
from headway.steps.sweep import run_sweep
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.search.space import trial_settings
from headway.sweeps.winner import Measured, finished_trials, pareto_front, rule, winner_of
from headway.tracking import tracking_uri

BOTH = ["accuracy", "latency_ms"]


def trials(*rows: tuple[float, float]) -> list[Measured]:
    return [
        Measured(
            Trial(Path(f"{index:05d}")), {"accuracy": accuracy, "latency_ms": latency, "loss": 1 - accuracy}
        )
        for index, (accuracy, latency) in enumerate(rows)
    ]


def names(found: list[Measured]) -> list[int]:
    return [measured.trial.number for measured in found]


def test_on_the_front_is_whom_no_other_beats_in_one_metric_at_no_loss_in_the_other():
    found = trials((0.9, 5.0), (0.9, 6.0), (0.8, 2.0), (0.7, 2.0), (0.95, 9.0), (float("nan"), 3.0))
    assert names(pareto_front(found, BOTH)) == [0, 2, 4]


def test_equals_are_both_on_the_front():
    assert names(pareto_front(trials((0.9, 5.0), (0.9, 5.0)), BOTH)) == [0, 1]


def test_the_winner_is_the_fastest_that_is_near_the_most_accurate():
    found = trials((0.95, 9.0), (0.945, 4.0), (0.93, 3.0), (0.5, 1.0))
    assert winner_of(found, BOTH, 0.01).trial.number == 1
    assert winner_of(found, BOTH, 0.03).trial.number == 2
    assert winner_of(found, BOTH, 0.0).trial.number == 0
    assert (
        rule(BOTH, 0.01) == "best latency_ms on the Pareto front among those within 0.01 of the best accuracy"
    )


def test_by_one_metric_the_loss_decides_between_equals():
    found = trials((0.9, 1.0), (0.9, 1.0))
    found[0].metrics["loss"] = 0.5
    assert winner_of(found, ["accuracy"], 0.01).trial.number == 1


def test_a_trial_that_searches_best_by_is_measured_by_the_model_it_kept(tmp_path):
    """One trial keeps its best model, the other its last: only the trials' own settings tell which."""
    ledger = Ledger(tmp_path)
    for best_by in ("accuracy", None):
        trial = ledger.new({"best_by": best_by})
        trial.record_steps_per_round(1)
        journal = Journal(trial.journal, start_step=0)
        for step, accuracy in enumerate((0.5, 0.9, 0.6), start=1):
            journal.append(step, {"validation_accuracy": accuracy, "validation_loss": 1.0})
        trial.end(TrialState.DONE)

    def settings_of(sampled: dict[str, Any]) -> FinetuneConfig:
        return trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, sampled)

    found = finished_trials(ledger, settings_of, ["accuracy"])
    assert [measured.metrics["accuracy"] for measured in found] == [0.9, 0.6]


def test_a_scheduler_that_judges_by_one_metric_is_refused_for_several():
    settings = {"model": "m", "task": {"source": "s"}, "metric": BOTH}
    with pytest.raises(Exception, match="scheduler asha judges by one metric; with several, set fifo"):
        validate(SweepConfig, settings)


def test_quality_is_searched_against_size(encoder, labelled_file, make_context, runs, ray_cluster):
    config = SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            "samples": 4,
            "search": {"layers": [1, 2], "optimizer.learning_rate": "loguniform(1e-3, 6e-3)"},
            "algorithm": "tpe",
            "scheduler": "fifo",
            "metric": ["accuracy", "parameters", "latency_ms"],
            "tolerance": 1.0,
            "reports": 1,
            "finetune": {"steps": 6},
        }
    )
    context = make_context("sweep-front", runs)
    result = run_sweep(config, context)
    summary = result.summary
    trials = [json.loads(p.read_text()) for p in sorted((context.folder / "trials").glob("0*/trial.json"))]
    fewest = min(trial["layers"] for trial in trials)
    # Any accuracy will do: the smallest model wins.
    assert summary["best"]["settings"]["layers"] == fewest
    assert AutoConfig.from_pretrained(result.output).num_hidden_layers == fewest
    assert summary["best"] in summary["front"]
    assert summary["best"]["latency_ms"] > 0
    [artifact] = [
        found
        for found in MlflowClient(tracking_uri(runs)).list_artifacts(summary["mlflow_run_id"])
        if found.path == "pareto.png"
    ]
    assert artifact.file_size > 0
    page = (context.folder / "leaderboard.html").read_text()
    assert page.count("done, Pareto front") == len(summary["front"])
