"""Where the trials of a sweep come from, and what the search learns from how they end."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from headway.config.finetune import FinetuneConfig
from headway.config.sweep import SweepConfig
from headway.runs.journal import Journal
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.schedulers import make_scheduler, replay
from headway.sweeps.search.sampler import Sampler, make_searcher, trial_count, trial_source
from headway.sweeps.search.space import parse_search, trial_settings
from headway.sweeps.time_budget import TimeBudget

RATE = "optimizer.learning_rate"


def settings(**more: Any) -> SweepConfig:
    base = {"model": "m", "task": {"source": "s"}, "search": {RATE: "loguniform(1e-5, 1e-1)"}, "samples": 5}
    return SweepConfig.model_validate(base | more)


def sampler_of(config: SweepConfig, metrics: Sequence[str] = ("accuracy",)) -> Sampler:
    return Sampler(config, parse_search(config.search, config.trained_class), list(metrics))


def settings_of(sampled: dict[str, Any]) -> FinetuneConfig:
    return trial_settings(FinetuneConfig, {"model": "m", "task": "t"}, sampled)


def measure(trial: Trial, accuracies: dict[int, float]) -> None:
    trial.record_steps_per_round(1)
    journal = Journal(trial.journal, start_step=0)
    for step, value in accuracies.items():
        journal.append(step, {"validation_accuracy": value, "validation_loss": 1 - value})


def proposals(config: SweepConfig, number: int) -> list[dict[str, Any]]:
    sampler = sampler_of(config)
    return [sampler.propose(index) for index in range(number)]


@pytest.mark.parametrize(("scheduler", "once"), [("fifo", False), ("asha", False), ("pbt", True)])
@pytest.mark.parametrize("ended", [0, 2])
def test_ray_tune_takes_every_remaining_trial_once(scheduler, once, ended, tmp_path):
    config = settings(scheduler=scheduler)
    ledger, sampler = Ledger(tmp_path), sampler_of(config)
    for number in range(ended):
        ledger.new(sampler.propose(number)).end(TrialState.DONE)
    budget = TimeBudget(ledger, None, "accuracy", "max")
    source = trial_source(config, sampler, ledger, settings_of, budget, remaining=5 - ended)
    if once:
        # The whole population is made beforehand: taken more than once, each member would train again.
        points = source.param_space["point"]["grid_search"]
        assert (source.num_samples, source.searcher) == (1, None)
        assert [point["number"] for point in points] == list(range(ended, 5))
    else:
        numbers = [source.searcher.suggest(str(i))["point"]["number"] for i in range(source.num_samples)]
        assert numbers == list(range(ended, 5))
        assert source.param_space == {}
        assert source.searcher.suggest("none is left") == source.searcher.FINISHED


@pytest.mark.parametrize("algorithm", ["random", "tpe", "grid"])
def test_the_seed_decides_what_is_proposed(algorithm):
    more: dict[str, Any] = {"search": {RATE: [1e-5, 1e-4, 1e-3, 1e-2], "batch_size": [8, 16]}}
    more = more if algorithm == "grid" else {}
    first, again, other = (
        proposals(settings(algorithm=algorithm, seed=seed, **more), 5) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_whole_quantised_and_conditional_values_are_proposed_as_written():
    search = {
        "batch_size": "uniform(8, 64)",
        "layers": "randint(1, 3)",
        RATE: "qloguniform(1e-4, 1e-2, 1e-4)",
        "optimizer.weight_decay": "quniform(0.0, 0.3, 0.1)",
        "schedule.name": ["linear", "wsd"],
        "schedule.decay": {"values": "uniform(0.1, 0.5)", "when": {"schedule.name": "wsd"}},
    }
    points = proposals(settings(search=search, samples=60), 60)
    assert {point["layers"] for point in points} == {1, 2}
    assert {point["optimizer.weight_decay"] for point in points} == {0.0, 0.1, 0.2, 0.3}
    assert all(isinstance(point["batch_size"], int) and 8 <= point["batch_size"] <= 64 for point in points)
    assert all(round(point[RATE] * 1e4, 6).is_integer() for point in points)
    with_decay = [point["schedule.name"] for point in points if "schedule.decay" in point]
    assert set(with_decay) == {"wsd"}
    assert len(with_decay) == sum(point["schedule.name"] == "wsd" for point in points)
    for point in points:
        settings_of(point)


def test_a_sweep_has_as_many_trials_as_samples_or_as_its_grid_has_points():
    search = {RATE: [1e-4, 1e-3], "batch_size": [8, 16, 32]}
    for algorithm, trials in (("grid", 6), ("random", 5), ("tpe", 5)):
        config = settings(search=search, algorithm=algorithm)
        assert trial_count(config, parse_search(config.search, FinetuneConfig)) == trials
        assert sampler_of(config).total == trials


def test_first_points_are_tried_first_and_what_they_leave_out_is_sampled():
    search = {RATE: "loguniform(1e-5, 1e-1)", "batch_size": [8, 16, 32]}
    first = [{RATE: 3e-4, "batch_size": 32}, {RATE: 1e-3}]
    with_points, without = (
        proposals(settings(search=search, **more), 5) for more in ({"first_points": first}, {})
    )
    assert with_points[0] == first[0]
    assert with_points[1][RATE] == 1e-3
    assert with_points[1]["batch_size"] in (8, 16, 32)
    assert with_points[2:] == without[2:]


def test_a_grid_begins_with_the_combinations_of_its_first_points():
    search = {RATE: [1e-4, 1e-3], "batch_size": [8, 16, 32]}
    first = [{RATE: 1e-3, "batch_size": 16}, {"batch_size": 8}]
    points = proposals(settings(search=search, algorithm="grid", first_points=first), 6)
    assert points[0] == first[0]
    assert [point["batch_size"] for point in points[1:3]] == [8, 8]
    assert len({json.dumps(point, sort_keys=True) for point in points}) == 6


def run(
    searcher: Any,
    ledger: Ledger,
    ending: TrialState | None,
    accuracies: dict[int, float],
    error: bool = False,
) -> Trial:
    """One trial as Ray Tune runs it: asked for, measured, and ended as its own record or Ray Tune says."""
    tune_id = str(len(ledger.trials()))
    number = searcher.suggest(tune_id)["point"]["number"]
    trial = ledger.trials()[number]
    measure(trial, accuracies)
    if ending is not None:
        trial.end(ending)
    searcher.on_trial_complete(tune_id, {"accuracy": list(accuracies.values())[-1]}, error)
    if ending is None:
        trial.end(TrialState.FAILED if error else TrialState.STOPPED)
    return trial


def rates_tried(
    searcher: Any, ledger: Ledger, small: TrialState, large: TrialState, by_ray: bool
) -> list[float]:
    """The rates of 30 trials that end one after another.

    Those above 1e-3 score more at first and end with `large`; the others end with `small`, best at 1e-4.
    """
    rates = []
    for number in range(30):
        rate = searcher.suggest(str(number))["point"]["sampled"][RATE]
        rates.append(rate)
        trial = ledger.trials()[number]
        score = 0.9 if rate > 1e-3 else 0.7 - abs(math.log10(rate) + 4) / 10
        state = large if rate > 1e-3 else small
        measure(trial, {1: 0.3, 9: score} if state is TrialState.DONE else {1: score})
        if state is TrialState.DONE or (state is TrialState.FAILED and not by_ray):
            trial.end(state)
        searcher.on_trial_complete(
            str(number), {"accuracy": score}, error=by_ray and state is TrialState.FAILED
        )
        trial.end(state)
    return rates


DONE, STOPPED, FAILED = TrialState.DONE, TrialState.STOPPED, TrialState.FAILED


@pytest.mark.parametrize(
    ("small", "large", "by_ray", "metrics"),
    [
        (DONE, STOPPED, True, ["accuracy"]),
        (DONE, FAILED, False, ["accuracy"]),
        (DONE, FAILED, True, ["accuracy"]),
        (STOPPED, FAILED, False, ["accuracy"]),
        (STOPPED, FAILED, True, ["accuracy"]),
        (DONE, STOPPED, True, ["accuracy", "loss"]),
        (DONE, FAILED, False, ["accuracy", "loss"]),
    ],
)
def test_tpe_learns_from_final_scores_not_from_those_of_trials_that_ended_early(
    small, large, by_ray, metrics, tmp_path
):
    config = settings(algorithm="tpe", samples=30, scheduler="fifo", metric=metrics)
    ledger, sampler = Ledger(tmp_path), sampler_of(config, metrics)
    budget = TimeBudget(ledger, None, "accuracy", "max")
    rates = rates_tried(make_searcher(sampler, ledger, settings_of, budget), ledger, small, large, by_ray)
    assert sum(rate < 1e-3 for rate in rates[15:]) > 10


class TellsWhatItIsTold(Sampler):
    """Remembers the values that trials are told with."""

    def __init__(self, config: SweepConfig) -> None:
        super().__init__(config, parse_search(config.search, config.trained_class), ["accuracy"])
        self.told: list[dict[str, float]] = []

    def tell(self, trial: Trial, outcome: Any) -> None:
        self.told.append(outcome.metrics)
        super().tell(trial, outcome)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_trial_that_keeps_its_best_model_is_told_with_its_score(restarted, tmp_path):
    """The trial's own settings say which model it kept, not those that all trials share."""
    search = {RATE: "loguniform(1e-5, 1e-1)", "best_by": ["accuracy"]}
    config = settings(algorithm="tpe", search=search)
    ledger, sampler = Ledger(tmp_path), TellsWhatItIsTold(config)
    searcher = make_searcher(sampler, ledger, settings_of, TimeBudget(ledger, None, "accuracy", "max"))
    run(searcher, ledger, TrialState.DONE, {1: 0.5, 2: 0.8, 3: 0.6})
    if restarted:
        sampler = TellsWhatItIsTold(config)
        replay(ledger.trials(), None, sampler, config.model_copy(update={"scheduler": None}), settings_of)
    [told] = sampler.told
    assert told["accuracy"] == 0.8


def test_a_trial_that_ray_tune_reports_no_error_of_is_told_as_it_ended(tmp_path):
    config = settings(algorithm="tpe", search={RATE: "loguniform(1e-5, 1e-1)", "best_by": ["accuracy"]})
    ledger, sampler = Ledger(tmp_path), TellsWhatItIsTold(config)
    budget = TimeBudget(ledger, None, "accuracy", "max")
    searcher = trial_source(config, sampler, ledger, settings_of, budget, remaining=5).searcher
    searcher.suggest("a")
    [trial] = ledger.trials()
    measure(trial, {1: 0.8, 2: 0.6})
    trial.end(TrialState.DONE)
    searcher.on_trial_complete("a", {"accuracy": 0.6})
    [told] = sampler.told
    assert told["accuracy"] == 0.8


def test_tpe_proposes_after_a_restart_what_it_would_have_proposed(tmp_path):
    """Whatever became of the trials; some of them still run."""
    config = settings(algorithm="tpe", samples=60, scheduler="fifo")
    ledger, sampler = Ledger(tmp_path), sampler_of(config)
    searcher = make_searcher(sampler, ledger, settings_of, TimeBudget(ledger, None, "accuracy", "max"))
    for number in range(20):
        ending, error = [(TrialState.DONE, False), (None, False), (TrialState.FAILED, False), (None, True)][
            number % 4
        ]
        run(searcher, ledger, ending, {1: number / 40, 2: (number * 7 % 20) / 20}, error)
    for number in range(20, 23):
        searcher.suggest(str(number))
    again = sampler_of(config)
    scheduler = make_scheduler(config, parse_search(config.search, FinetuneConfig), ledger, "accuracy", "max")
    replay(ledger.trials(), scheduler, again, config, settings_of)
    assert [again.propose(number) for number in (23, 24)] == [sampler.propose(number) for number in (23, 24)]
