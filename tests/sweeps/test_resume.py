"""What a sweep does when its driver died: the ledger is the only record, and it is enough."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from ray.tune.schedulers import ASHAScheduler

from headway.config.finetune import FinetuneConfig
from headway.config.sweep import AshaConfig, SearchSpace, SweepConfig
from headway.inference.predictor import Predictor
from headway.runs.journal import Journal, read_journal
from headway.steps.sweep import run_sweep
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.schedulers import make_scheduler, replay, rung_steps
from headway.sweeps.search.sampler import Sampler, next_trials
from headway.sweeps.search.space import Space, parse_search, trial_settings
from headway.sweeps.time_budget import TimeBudget
from headway.tasks.preparation import read_task
from headway.tracking import tracking_uri

SEARCH = {"optimizer.learning_rate": "loguniform(1e-3, 6e-3)", "batch_size": [8, 16]}


def settings(**more) -> SweepConfig:
    base = {"model": "m", "task": {"source": "s"}, "search": SEARCH, "samples": 5}
    return SweepConfig.model_validate(base | more)


def space_of(config: SweepConfig) -> Space:
    return parse_search(config.search, config.trained_class)


def settings_of(sampled: dict[str, Any]) -> FinetuneConfig:
    return trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, sampled)


def unlimited(ledger: Ledger) -> TimeBudget:
    return TimeBudget(ledger, None, "accuracy", "max")


def measure(trial: Trial, accuracies: dict[int, float], steps_per_round: int = 1) -> None:
    trial.record_steps_per_round(steps_per_round)
    journal = Journal(trial.journal, start_step=0)
    for step, value in accuracies.items():
        journal.append(step, {"validation_accuracy": value, "validation_loss": 1 - value})


def test_a_restart_proposes_what_would_have_been_proposed(tmp_path):
    config = settings()
    space = space_of(config)
    whole = [Sampler(config, space, ["accuracy"]).propose(number) for number in range(5)]
    again = Sampler(config, space, ["accuracy"])
    assert [again.propose(number) for number in (3, 4)] == whole[3:]
    assert len({json.dumps(point) for point in whole}) == 5


def test_unfinished_trials_come_first_then_new_ones_and_ended_ones_never(tmp_path):
    config = settings()
    sampler, ledger = Sampler(config, space_of(config), ["accuracy"]), Ledger(tmp_path / "trials")
    made = [ledger.new(sampler.propose(number)) for number in range(3)]
    made[0].end(TrialState.DONE)
    made[2].end(TrialState.STOPPED)
    ledger = Ledger(tmp_path / "trials")
    sampler = Sampler(config, space_of(config), ["accuracy"])
    left = list(next_trials(ledger, sampler, unlimited(ledger)))
    assert [trial.number for trial in left] == [1, 3, 4]
    assert left[0].sampled == made[1].sampled


def test_how_a_trial_ended_is_noted_once(tmp_path):
    trial = Ledger(tmp_path).new({"batch_size": 8})
    trial.end(TrialState.DONE)
    trial.end(TrialState.STOPPED, "the scheduler came late")
    assert trial.ended == (TrialState.DONE, "")


def test_a_new_scheduler_stops_whom_the_old_one_would_have(tmp_path):
    config = settings(scheduler="asha")
    space = space_of(config)
    ledger = Ledger(tmp_path / "trials")
    sampler = Sampler(config, space, ["accuracy"])
    for accuracies in ({2: 0.7, 6: 0.9, 8: 0.9}, {2: 0.8, 6: 0.95, 8: 0.95}):
        trial = ledger.new(sampler.propose(len(ledger.trials())))
        measure(trial, accuracies, steps_per_round=2)
        trial.end(TrialState.DONE)
    scheduler = make_scheduler(config, space, ledger, "accuracy", "max")
    assert isinstance(scheduler, ASHAScheduler)
    replay(ledger.trials(), scheduler, sampler, config, settings_of)

    class New:
        trial_id = "new"

    scheduler.on_trial_add(None, New())
    assert scheduler.on_trial_result(None, New(), {"round": 1, "accuracy": 0.1, "loss": 0.9}) == "STOP"
    scheduler.on_trial_add(None, New())
    assert scheduler.on_trial_result(None, New(), {"round": 1, "accuracy": 0.85, "loss": 0.1}) == "CONTINUE"
    # Of the third round, too, it knows what the others had there: no more in the second than in the first.
    assert scheduler.on_trial_result(None, New(), {"round": 2, "accuracy": 0.1, "loss": 0.1}) == "CONTINUE"
    assert scheduler.on_trial_result(None, New(), {"round": 3, "accuracy": 0.92, "loss": 0.1}) == "STOP"


@pytest.mark.parametrize(("grace_period", "reduction_factor"), [(1, 3), (2, 4)])
def test_a_trial_is_evaluated_where_ray_tunes_scheduler_has_its_rungs(
    grace_period, reduction_factor, tmp_path
):
    halving = AshaConfig(grace_period=grace_period, reduction_factor=reduction_factor)
    config = settings(scheduler=halving)
    scheduler = make_scheduler(config, space_of(config), Ledger(tmp_path), "accuracy", "max")
    rungs = sorted(milestone for milestone, _ in scheduler._brackets[0]._rungs)
    assert rungs[:2] == [grace_period, grace_period * reduction_factor]
    assert rung_steps(halving, 2, 100) == tuple(2 * rung for rung in rungs if 2 * rung < 100)
    assert rung_steps(AshaConfig(), 1, 9) == (1, 3)
    assert rung_steps(AshaConfig(), 1, 1) == ()


def test_the_bracket_of_a_trial_is_the_same_after_a_restart(tmp_path):
    """One bracket stops trials from the first evaluation on, the other lets all come to the third."""
    config = settings(scheduler="hyperband", samples=40)

    def stopped_at_once() -> list[int]:
        scheduler = make_scheduler(config, space_of(config), Ledger(tmp_path), "accuracy", "max")
        found = []
        for number in range(40):
            trial = SimpleNamespace(trial_id=str(number), config={"point": {"number": number}})
            scheduler.on_trial_add(None, trial)
            # Each is worse than all before it.
            result = {"round": 1, "accuracy": 1 - number / 100}
            if scheduler.on_trial_result(None, trial, result) == "STOP":
                found.append(number)
        return found

    assert stopped_at_once() == stopped_at_once()
    assert 20 < len(stopped_at_once()) < 38


def test_tpe_learns_from_trials_of_before_the_restart(tmp_path):
    """Every good trial had a small rate: what is proposed after them is smaller than what chance proposes."""
    search: SearchSpace = {"optimizer.learning_rate": "loguniform(1e-5, 1e-1)"}

    def medians(told: bool) -> float:
        config = settings(search=search, algorithm="tpe", samples=40)
        sampler, ledger = Sampler(config, space_of(config), ["accuracy"]), Ledger(tmp_path / f"told-{told}")
        for index in range(20):
            rate = 10 ** (-5 + 4 * index / 19)
            trial = ledger.new({"optimizer.learning_rate": rate})
            measure(trial, {1: 1.0 - (math.log10(rate) + 5) / 4})
            trial.end(TrialState.DONE)
        if told:
            scheduler = make_scheduler(config, space_of(config), ledger, "accuracy", "max")
            replay(ledger.trials(), scheduler, sampler, config, settings_of)
        rates = sorted(sampler.propose(number)["optimizer.learning_rate"] for number in range(20, 40))
        return rates[10]

    assert medians(told=True) < 0.2 * medians(told=False)


def test_a_finished_sweep_that_is_resumed_runs_nothing_again(
    encoder, labelled_file, make_context, runs, ray_cluster
):
    config = SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            "samples": 3,
            "search": SEARCH,
            "scheduler": "fifo",
            "reports": 2,
            "finetune": {"steps": 6},
        }
    )
    context = make_context("sweep-again", runs)
    first = run_sweep(config, context)
    written = {path: path.stat().st_mtime_ns for path in (context.folder / "trials").rglob("*.jsonl")}
    # As if the driver had died while the last trial ran.
    last = context.folder / "trials" / "00002"
    (last / "ended.json").unlink()
    again = run_sweep(config, context)
    changed = {path.parent.name for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert changed == {"00002"}
    assert again.output == first.output
    assert again.summary["best"] == first.summary["best"]
    assert again.summary["test"] == first.summary["test"]

    client = MlflowClient(tracking_uri(runs))
    parent = client.get_run(first.summary["mlflow_run_id"])
    assert again.summary["mlflow_run_id"] == parent.info.run_id
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    )
    assert sorted(child.info.run_name for child in children) == ["trial 00000", "trial 00001", "trial 00002"]
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        history = client.get_metric_history(child.info.run_id, "validation_loss")
        assert [entry.step for entry in history] == sorted({entry.step for entry in history})
    names = {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.html", "curves.png", "parallel_coordinates.png"} <= names
    page = (context.folder / "leaderboard.html").read_text()
    assert page.count("<tr>") == 4
    assert first.summary["best"]["trial"] in page


@pytest.mark.parametrize(("scheduler", "algorithm"), [("pbt", "random"), ("median", "tpe"), ("asha", "grid")])
def test_every_scheduler_and_algorithm_ends_with_a_trained_winner(
    scheduler, algorithm, encoder, labelled_file, make_context, runs, ray_cluster
):
    search = SEARCH | ({"optimizer.learning_rate": [1e-3, 5e-3]} if algorithm == "grid" else {})
    config = SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            "samples": 4,
            "search": search,
            "scheduler": scheduler,
            "algorithm": algorithm,
            "reports": 4,
            "finetune": {"steps": 8},
        }
    )
    result = run_sweep(config, make_context(f"sweep-{scheduler}", runs))
    assert (result.summary["trials"], result.summary["failed"]) == (4, 0)
    assert (Path(result.output) / "model.safetensors").is_file()
    test = read_task(config.task)["test"]
    answers = Predictor(Path(result.output)).rows([item.texts[0] for item in test])
    right = [answer["label"] == item.target for answer, item in zip(answers, test, strict=True)]
    assert result.summary["test"]["accuracy"] == pytest.approx(sum(right) / len(right))
    # A round has 2 of the 8 steps. Who judges at rungs alone has nothing measured between them.
    whole = [2, 6, 8] if scheduler in ("asha", "hyperband") else [2, 4, 6, 8]
    trials = Ledger(Path(result.output).parents[1]).trials()
    assert {entry.step for trial in trials for entry in trial.evaluations()} == set(whole)


@pytest.mark.parametrize("scheduler", ["pbt", "median"])
def test_a_sweep_continues_where_its_driver_died(
    scheduler, encoder, labelled_file, make_context, runs, ray_cluster, monkeypatch
):
    config = SweepConfig.model_validate(
        {
            "model": str(encoder),
            "task": {"source": str(labelled_file), "max_length": 48},
            "samples": 4,
            "search": SEARCH,
            "scheduler": scheduler,
            "reports": 4,
            "test": False,
            "finetune": {"steps": 8},
        }
    )
    context = make_context(f"sweep-died-{scheduler}", runs)
    with monkeypatch.context() as without:
        without.setattr(Ledger, "keep_only", lambda *_: None)
        # What is deleted once a trial's end is recorded.
        without.setattr(EndedTrials, "delete", lambda *_: None)
        without.setattr(EndedTrials, "_delete_beaten", lambda *_: None)
        run_sweep(config, context)
    ledger = Ledger(context.folder / "trials")
    # Not one that became the copy of a trial that was further: it was never measured in between.
    whole = [trial for trial in ledger.trials() if len(trial.evaluations()) == 4]
    died = next(trial for trial in whole if trial.state is TrialState.DONE)
    before = {trial.number: read_journal(trial.journal) for trial in ledger.trials()}
    # As if the driver had died in its last round.
    (died.folder / "ended.json").unlink()
    shutil.rmtree(died.model)
    result = run_sweep(config, context)
    after = {trial.number: read_journal(trial.journal) for trial in ledger.trials()}
    assert result.summary["trials"] == 4
    assert {number for number in after if after[number] != before[number]} == {died.number}
    assert [entry.step for entry in died.evaluations()] == [2, 4, 6, 8]
    kept = [entry for entry in after[died.number] if entry in before[died.number]]
    # A population saves states, and the trial had one after its third round; others begin from scratch.
    assert max((entry.step for entry in kept), default=0) == (6 if scheduler == "pbt" else 0)


def test_a_sweep_over_pretraining_hands_on_the_lowest_loss(
    corpus, make_context, runs, ray_cluster, tiny_shape
):
    config = SweepConfig.model_validate(
        {
            "pretrain": {"corpus": str(corpus.folder), "model": tiny_shape, "steps": 6, "batch_size": 16},
            "search": {"optimizer.learning_rate": [1e-5, 3e-3]},
            "algorithm": "grid",
            "scheduler": "fifo",
            "reports": 2,
        }
    )
    result = run_sweep(config, make_context("sweep-pretrain", runs))
    assert result.summary["metric"] == "loss"
    assert result.summary["best"]["settings"] == {"optimizer.learning_rate": 3e-3}
    assert json.loads((Path(result.output) / "config.json").read_text())["architectures"] == [
        "BertForPreTraining"
    ]
