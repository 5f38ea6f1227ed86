"""What is left of trials that have ended: only those that may still win keep their models."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headway.config.finetune import FinetuneConfig
from headway.runs.journal import Journal
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ending, Ledger, Trial, TrialState

STOPPED = Ending(TrialState.STOPPED, "")


def settings_of(sampled: dict[str, Any]) -> FinetuneConfig:
    return FinetuneConfig.model_validate({"model": "m", "task": "t"} | sampled)


def trained(ledger: Ledger, accuracy: float, latency: float = 1.0, loss: float = 0.5) -> Trial:
    """A trial that trained to its end."""
    trial = ledger.new({})
    metrics = {"accuracy": accuracy, "latency_ms": latency, "loss": loss}
    Journal(trial.journal, 0).append(9, {f"validation_{name}": value for name, value in metrics.items()})
    for name in ("model", "state"):
        (trial.folder / name).mkdir()
        (trial.folder / name / "weights").write_text("w")
    trial.end(TrialState.DONE)
    return trial


def end(ledger: Ledger, metrics: list[str], *trials: Trial) -> None:
    with EndedTrials(ledger, settings_of, metrics) as ended:
        for trial in trials:
            ended.add(trial, STOPPED, lambda *_: None)


def models(ledger: Ledger) -> list[int]:
    return [trial.number for trial in ledger.trials() if trial.model.exists()]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "trials")


def test_only_the_best_so_far_keeps_its_model(ledger):
    left = []
    for accuracy in (0.5, 0.4, 0.9, 0.7):
        end(ledger, ["accuracy"], trained(ledger, accuracy))
        left.append(models(ledger))
    assert left == [[0], [0], [2], [2]]


def test_of_equals_the_one_that_will_win_keeps_its_model_whichever_ends_first(ledger):
    first, second = trained(ledger, 0.9), trained(ledger, 0.9)
    end(ledger, ["accuracy"], second, first)
    assert models(ledger) == [0]


def test_with_several_metrics_all_on_the_front_keep_their_models(ledger):
    pairs = [(0.9, 5.0), (0.8, 6.0), (0.7, 2.0), (0.95, 9.0), (float("nan"), 3.0)]
    end(ledger, ["accuracy", "latency_ms"], *(trained(ledger, *pair) for pair in pairs))
    assert models(ledger) == [0, 2, 3]


def test_the_next_driver_knows_what_the_earlier_one_kept(ledger):
    end(ledger, ["accuracy"], trained(ledger, 0.9))
    end(ledger, ["accuracy"], trained(ledger, 0.5))
    assert models(ledger) == [0]


def test_states_go_when_their_trial_ends(ledger):
    stopped = ledger.new({})
    (stopped.folder / "state" / "step-1").mkdir(parents=True)
    done = trained(ledger, 0.9)
    end(ledger, ["accuracy"], stopped, done)
    assert not list(ledger.folder.glob("*/state"))
    assert (stopped.ended, done.ended) == (STOPPED, (TrialState.DONE, ""))


def test_ray_tunes_loop_does_not_wait_for_what_is_done_at_a_trials_end(ledger):
    """Before, each stopped trial held the loop until its group was gone, for up to a minute."""
    may_go_on = threading.Event()
    told: list[int] = []

    def slow(number: int) -> Callable[[Trial, Ending], None]:
        def tell(trial: Trial, ending: Ending) -> None:
            may_go_on.wait(timeout=600)
            told.append(number)

        return tell

    with EndedTrials(ledger, settings_of, ["accuracy"]) as ended:
        for number in range(3):
            ended.add(ledger.new({}), STOPPED, slow(number))
        assert told == []
        may_go_on.set()
    assert told == [0, 1, 2]


def test_a_record_that_cannot_be_written_is_an_error_at_the_end(ledger, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    trial = ledger.new({})
    monkeypatch.setattr("headway.sweeps.ledger.write_atomically", fail)
    with (
        pytest.raises(OSError, match="no space left"),
        EndedTrials(ledger, settings_of, ["accuracy"]) as ended,
    ):
        ended.add(trial, STOPPED, lambda *_: None)
