"""Ray Tune's schedulers with the settings of a sweep, and what they know after a restart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, PopulationBasedTraining

from headway.config.finetune import FinetuneConfig
from headway.config.sweep import SweepConfig
from headway.runs.journal import Journal
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.schedulers import make_scheduler, replay
from headway.sweeps.search.sampler import Sampler
from headway.sweeps.search.space import parse_search, trial_settings


def settings(scheduler: Any) -> SweepConfig:
    search = {"optimizer.learning_rate": "loguniform(1e-3, 6e-3)"}
    return SweepConfig.model_validate(
        {"model": "m", "task": {"source": "s"}, "search": search, "scheduler": scheduler}
    )


def settings_of(sampled: dict[str, Any]) -> FinetuneConfig:
    return trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, sampled)


def scheduler_of(config: SweepConfig, folder: Path) -> Any:
    space = parse_search(config.search, FinetuneConfig)
    return make_scheduler(config, space, Ledger(folder), "accuracy", "max")


class New(SimpleNamespace):
    """A trial as a scheduler sees it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.trial_id)


class Controller:
    """As much of Ray Tune's controller as the median rule asks for: another trial waits for its turn."""

    def get_live_trials(self) -> list[Any]:
        return [SimpleNamespace(status="PENDING")]


def decisions(scheduler: Any, accuracies: list[float]) -> list[str]:
    trial = New(trial_id="new")
    scheduler.on_trial_add(Controller(), trial)
    return [
        scheduler.on_trial_result(Controller(), trial, {"round": number, "accuracy": value})
        for number, value in enumerate(accuracies, start=1)
    ]


EARLIER = ([0.5, 0.6, 0.7], [0.5, 0.5, 0.6], [0.4, 0.4, 0.8])
"""Means of the second and third round, the last of them twice: 0.667, 0.567, 0.667."""


@pytest.mark.parametrize("ending", [TrialState.DONE, TrialState.STOPPED])
@pytest.mark.parametrize(
    ("accuracies", "decision"),
    [
        ([0.1, 0.5], "CONTINUE"),
        ([0.1, 0.49], "STOP"),
        ([0.1, 0.5, 0.667], "CONTINUE"),
        ([0.1, 0.5, 0.66], "STOP"),
    ],
)
def test_after_a_restart_the_median_is_that_of_the_trials_before(accuracies, decision, ending, tmp_path):
    config = settings("median")
    ledger = Ledger(tmp_path)
    live = scheduler_of(config, tmp_path)
    for earlier in EARLIER:
        trial = ledger.new({"optimizer.learning_rate": 2e-3})
        trial.record_steps_per_round(10)
        journal = Journal(trial.journal, start_step=0)
        tune_trial, result = New(trial_id=str(trial.number)), {}
        live.on_trial_add(None, tune_trial)
        for number, value in enumerate(earlier, start=1):
            journal.append(10 * number, {"validation_accuracy": value, "validation_loss": 1.0})
            result = {"round": number, "accuracy": value, "loss": 1.0}
            live.on_trial_result(Controller(), tune_trial, result)
        # Ray Tune gives the last result again when a trial ends.
        live.on_trial_complete(None, tune_trial, result)
        trial.end(ending)
    restarted = scheduler_of(config, tmp_path)
    sampler = Sampler(config, parse_search(config.search, FinetuneConfig), ["accuracy"])
    replay(ledger.trials(), restarted, sampler, config, settings_of)
    assert decisions(restarted, accuracies)[-1] == decisions(live, accuracies)[-1] == decision


def test_the_median_rule_pauses_no_trial_since_it_would_begin_again(tmp_path):
    scheduler = scheduler_of(settings("median"), tmp_path)
    assert isinstance(scheduler, MedianStoppingRule)
    assert decisions(scheduler, [0.1, 0.2, 0.3]) == ["CONTINUE"] * 3


def test_a_scheduler_has_the_settings_it_is_given(tmp_path):
    def made(scheduler: dict[str, Any]) -> Any:
        return scheduler_of(settings(scheduler), tmp_path)

    asha = made({"name": "asha", "grace_period": 2, "reduction_factor": 4})
    assert isinstance(asha, ASHAScheduler)
    assert sorted(rung for rung, _ in asha._brackets[0]._rungs)[:3] == [2, 8, 32]
    hyperband = made({"name": "hyperband", "brackets": 3})
    assert [min(rung for rung, _ in bracket._rungs) for bracket in hyperband._brackets] == [1, 3, 9]
    # With one earlier trial as a median, and from the first round on.
    median = made({"name": "median", "grace_period": 1, "min_samples_required": 1})
    median.on_trial_complete(None, New(trial_id="earlier"), {"round": 9, "accuracy": 0.5})
    median._results[New(trial_id="earlier")].insert(0, {"round": 1, "accuracy": 0.5})
    assert decisions(median, [0.4]) == ["STOP"]
    pbt = made({"name": "pbt", "perturbation_interval": 3, "quantile_fraction": 0.5})
    assert isinstance(pbt, PopulationBasedTraining)
    assert (pbt._perturbation_interval, pbt._quantile_fraction) == (3, 0.5)
