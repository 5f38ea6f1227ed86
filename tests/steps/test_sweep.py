"""The step `sweep` on Ray Tune."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from transformers import AutoModelForSequenceClassification

from headway.config.base import ConfigError
from headway.config.sweep import SweepConfig
from headway.steps.sweep import run_sweep
from headway.sweeps.ledger import Ledger, TrialState
from headway.tracking import tracking_uri


@pytest.fixture
def config(encoder, labelled_file) -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            "samples": 3,
            "search": {
                "optimizer.learning_rate": "loguniform(1e-3, 6e-3)",
                "optimizer.name": ["adamw", "lamb"],
            },
            "finetune": {"steps": 18, "batch_size": 16},
        }
    )


def test_three_trials_are_searched_and_the_best_model_is_handed_on(config, make_context, runs, ray_cluster):
    context = make_context("sweep-three", runs)
    more = {"finetune": config.finetune | {"system_metrics_interval_s": 0.2}}
    result = run_sweep(SweepConfig.model_validate(config.model_dump() | more), context)
    summary = result.summary
    assert (summary["trials"], summary["failed"]) == (3, 0)
    assert result.outputs["best"] == result.output
    best = summary["best"]
    assert 1e-3 <= best["settings"]["optimizer.learning_rate"] <= 6e-3
    assert best["settings"]["optimizer.name"] in ("adamw", "lamb")
    model = AutoModelForSequenceClassification.from_pretrained(result.output)
    assert set(model.config.label2id) == {"garden", "harbour", "kitchen"}
    # The models of the others are cleared away.
    assert list((context.folder / "trials").glob("*/model")) == [Path(result.output)]

    client = MlflowClient(tracking_uri(runs))
    parent = client.get_run(summary["mlflow_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert len(children) == 3
    assert {child.info.status for child in children} == {"FINISHED"}  # a stopped one did all that was asked
    [winner] = [
        child for child in children if child.info.run_name == f"trial {Path(result.output).parent.name}"
    ]
    assert winner.data.metrics["validation_accuracy"] == pytest.approx(best["accuracy"])
    rates = {child.data.params["optimizer.learning_rate"] for child in children}
    assert len(rates) == 3
    rows = {
        entry.dataset.name.rsplit("/", 1)[1]: entry.dataset.digest for entry in parent.inputs.dataset_inputs
    }
    read = {rows["train"], rows["validation"]}
    for child in children:
        assert {entry.dataset.digest for entry in child.inputs.dataset_inputs} == read
    assert winner.data.metrics["system/process_memory_megabytes"] > 10


def test_a_sweep_whose_time_is_over_ends_with_a_model_and_no_trial_left_running(
    config, make_context, runs, ray_cluster
):
    more = {"samples": 50, "time_budget_s": 0.1, "scheduler": "fifo", "concurrency": 2, "reports": 3}
    context = make_context("sweep-in-time", runs)
    result = run_sweep(SweepConfig.model_validate(config.model_dump() | more), context)
    trials = Ledger(context.folder / "trials").trials()
    assert 1 <= len(trials) <= 2
    assert TrialState.DONE in {trial.state for trial in trials}
    assert all(trial.state.is_terminal for trial in trials)
    assert (Path(result.output) / "model.safetensors").is_file()
    client = MlflowClient(tracking_uri(runs))
    parent = client.get_run(result.summary["mlflow_run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert len(children) == len(trials)
    assert "RUNNING" not in {child.info.status for child in children}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"optimizer.learning_rate": "loguniform(0, 1)"}, "are not above 0, which a logarithm needs"),
        ({"optimizer.learning_rate": "uniform(2, 1)"}, "not in order"),
        ({"optimizer.learning_rate": "uniform(a, b)"}, "are not numbers"),
        ({"optimizer.learning_rate": "normal(0, 1)"}, "is not a search; allowed: uniform"),
        ({"optimizer.name": []}, "the list is empty"),
        ({"optimizer.name": ["adamw", "sgd"]}, "optimizer.name: 'sgd' is not allowed"),
        ({"optimizer.learning_rate": "uniform(-1, 1)"}, "learning_rate: -1.0 is not allowed"),
        ({"no.such": [1]}, "unknown setting"),
        ({"model": ["a", "b"]}, "search.model: all trials of a sweep have the same"),
    ],
)
def test_a_search_that_would_fail_in_a_trial_is_refused_before_any(search, message, config, make_context):
    with pytest.raises(ConfigError, match=message):
        run_sweep(config.model_copy(update={"search": search}), make_context("sweep"))
