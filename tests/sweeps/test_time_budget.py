"""A sweep's budget of time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headway.sweeps import time_budget
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.time_budget import TimeBudget


class Clock:
    """`time`, whose hands the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time_budget, "time", clock)
    return clock


def ledger_of(tmp_path, trials: int = 3) -> Ledger:
    ledger = Ledger(tmp_path)
    for number in range(trials):
        ledger.new({})
        ledger.known_as(str(number), number)
    return ledger


def test_without_a_budget_time_is_never_over(clock, tmp_path):
    budget = TimeBudget(ledger_of(tmp_path), None, "accuracy", "max")
    clock.seconds += 1e9
    assert not budget.is_spent
    assert not budget.is_over()
    assert not budget.ends("0", {"accuracy": 0.1})


def test_all_trials_stop_when_the_time_is_over_and_one_has_trained_to_its_end(clock, tmp_path):
    ledger = ledger_of(tmp_path)
    budget = TimeBudget(ledger, 60, "accuracy", "max")
    stopper = budget.stopper()
    ledger.trials()[0].end(TrialState.DONE)
    clock.seconds += 59
    assert not stopper.stop_all()
    assert not stopper("1", {"accuracy": 0.5})
    clock.seconds += 2
    assert stopper.stop_all()
    assert stopper("1", {"accuracy": 0.9})


def test_as_long_as_none_has_trained_to_its_end_the_best_continues(clock, tmp_path):
    ledger = ledger_of(tmp_path)
    budget = TimeBudget(ledger, 60, "loss", "min")
    for number, loss in enumerate((0.5, 0.4, 0.3)):
        assert not budget.ends(str(number), {"loss": loss})
    clock.seconds += 61
    assert not budget.is_over()
    assert budget.ends("0", {"loss": 0.45})
    assert budget.ends("0", {"loss": float("nan")})
    # The one that was best does not wait for a trial that has ended.
    ledger.trials()[2].end(TrialState.FAILED)
    assert not budget.ends("1", {"loss": 0.4})
    ledger.trials()[1].end(TrialState.DONE)
    clock.seconds += 1
    assert budget.is_over()


def test_the_next_driver_has_what_the_last_one_left(clock, tmp_path):
    ledger = ledger_of(tmp_path)
    budget = TimeBudget(ledger, 60, "accuracy", "max")
    for _ in range(40):
        clock.seconds += 1
        budget.is_over()
    clock.seconds += 10_000  # no driver
    budget = TimeBudget(ledger, 60, "accuracy", "max")
    clock.seconds += 19
    assert not budget.is_spent
    clock.seconds += 1
    assert budget.is_spent


def test_ray_tune_can_store_the_stopper_without_the_budget(clock, tmp_path):
    import pickle

    stopper = pickle.loads(pickle.dumps(TimeBudget(ledger_of(tmp_path), 60, "loss", "min").stopper()))
    assert not stopper.stop_all()
    assert not stopper("0", SimpleNamespace())
