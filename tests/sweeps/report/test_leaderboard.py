"""What the driver knows of a sweep while it runs, without looking at any file."""

from __future__ import annotations

import io
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from headway.config.finetune import FinetuneConfig
from headway.display import Display
from headway.sweeps.ended_trials import EndedTrials
from headway.sweeps.ledger import Ending, Ledger, Trial, TrialState
from headway.sweeps.report.leaderboard import Leaderboard


class Heard:
    """Stands in for what MLflow is told: remembers it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Ending | None]] = []

    def changed(self, trial: Trial, ending: Ending | None = None) -> None:
        self.told.append((trial.number, ending))


def tune_trial(trial: Trial) -> Any:
    """A trial as Ray Tune's callbacks see it."""
    point = {"number": trial.number, "sampled": trial.sampled}
    return SimpleNamespace(
        trial_id=f"id{trial.number}", config={"point": point}, get_error=lambda: "first\nlast"
    )


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "trials")


def shown(board: Leaderboard) -> str:
    board.show()
    stream = board._display.console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def make_board(ledger: Ledger, log: Any, ended: Any) -> Leaderboard:
    display = Display()
    display.console = Console(file=io.StringIO(), width=120)
    return Leaderboard(ledger, display, ["batch_size"], ["accuracy"], log, ended)


def test_a_result_costs_no_look_at_a_file(ledger):
    """The files are gone, and the driver does not notice."""
    log = Heard()
    trials = [ledger.new({"batch_size": size}) for size in (8, 16)]
    board = make_board(ledger, log, None)
    follow = board.callback()
    seen = [tune_trial(trial) for trial in trials]
    for trial in seen:
        follow.on_trial_start(0, seen, trial)
    shutil.rmtree(ledger.folder)
    for trial, accuracy in zip(seen, (0.25, 0.75), strict=True):
        follow.on_trial_result(0, seen, trial, {"step": 10, "accuracy": accuracy, "loss": 0.5})
    table = shown(board)
    assert table.index("00001") < table.index("00000"), "the better one is first"
    assert "0.75" in table
    assert log.told == [(0, None), (1, None), (0, None), (1, None)]


def test_how_trials_ended_is_told_once_it_is_known(ledger):
    log = Heard()
    done, stopped, lost = (ledger.new({"batch_size": 8}) for _ in range(3))
    done.end(TrialState.DONE)
    seen = [tune_trial(trial) for trial in (done, stopped, lost)]
    settings = FinetuneConfig.model_validate({"model": "m", "task": "t"})
    with EndedTrials(ledger, lambda sampled: settings, ["accuracy"]) as ended:
        board = make_board(ledger, log, ended)
        follow = board.callback()
        follow.on_trial_complete(0, seen, seen[0])
        follow.on_trial_complete(0, seen, seen[1])
        follow.on_trial_error(0, seen, seen[2])
    endings = [
        Ending(TrialState.DONE, ""),
        Ending(TrialState.STOPPED, ""),
        Ending(TrialState.FAILED, "last"),
    ]
    assert log.told == list(enumerate(endings))
    assert [trial.ended for trial in (done, stopped, lost)] == endings
    logs = [trial.folder / "failure.log" for trial in (done, stopped, lost)]
    assert [log.exists() for log in logs] == [False, False, True]
    assert logs[2].read_text() == "first\nlast"


def test_of_a_thousand_trials_the_best_are_shown_and_the_others_counted(ledger, monkeypatch):
    monkeypatch.setattr("headway.sweeps.ledger.write_atomically", lambda *_: None)
    board = make_board(ledger, Heard(), None)
    follow = board.callback()
    for number in range(1000):
        trial = Trial(ledger.folder / f"{number:05d}")
        point = {"number": number, "sampled": {"batch_size": 8}}
        seen = SimpleNamespace(trial_id=f"id{number}", config={"point": point})
        board._known[seen.trial_id] = trial
        follow.on_trial_result(0, [], seen, {"step": 1, "accuracy": number / 1000, "loss": 1.0})
    board._rows[5].state = TrialState.STOPPED
    table = shown(board)
    assert "the best 20 of 1000 trials (999 running, 1 stopped)" in " ".join(table.split())
    assert ("00999" in table, "00980" in table, "00979" in table) == (True, True, False)


def test_a_trial_without_a_score_comes_last(ledger):
    board = make_board(ledger, Heard(), None)
    follow = board.callback()
    for accuracy in (float("nan"), 0.1):
        trial = tune_trial(ledger.new({"batch_size": 8}))
        follow.on_trial_result(0, [], trial, {"step": 1, "accuracy": accuracy, "loss": 1.0})
    table = shown(board)
    assert table.index("00001") < table.index("00000")
