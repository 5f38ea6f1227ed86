"""What is known of trials on disk."""

from __future__ import annotations

import json

import pytest

from headway.sweeps.ledger import Ledger, TrialState


def test_a_trial_runs_until_its_end_is_recorded(tmp_path):
    trial = Ledger(tmp_path).new({"batch_size": 8})
    assert trial.state is TrialState.RUNNING
    assert trial.ended is None
    trial.end(TrialState.FAILED, "the loss is not finite")
    assert Ledger(tmp_path).trials()[0].state is TrialState.FAILED
    assert trial.ended == (TrialState.FAILED, "the loss is not finite")
    assert json.loads((trial.folder / "ended.json").read_text())["state"] == "failed"


def test_all_states_but_running_are_final(tmp_path):
    assert [state for state in TrialState if not state.is_terminal] == [TrialState.RUNNING]
    with pytest.raises(AssertionError):
        Ledger(tmp_path).new({}).end(TrialState.RUNNING)


def test_to_make_a_trial_takes_no_longer_the_more_there_are(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path)
    ledger.new({})

    def refuse(*_: object) -> None:
        raise AssertionError("all trials are listed")

    monkeypatch.setattr(type(tmp_path), "glob", refuse)
    assert [ledger.new({}).number for _ in range(3)] == [1, 2, 3]
    assert [trial.number for trial in ledger.trials()] == [0, 1, 2, 3]


def test_after_a_sweep_only_the_winners_model_and_what_was_measured_stay(tmp_path):
    ledger = Ledger(tmp_path)
    for trial in (ledger.new({}), ledger.new({})):
        for name in ("best", "population", "train", "model"):
            (trial.folder / name).mkdir()
            (trial.folder / name / "weights").touch()
        trial.journal.touch()
        ledger.known_as(f"id {trial.number}", trial.number)
    ledger.keep_only(ledger.trials()[1])
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "00000/trial.json",
        "00000/journal.jsonl",
        "00001/trial.json",
        "00001/journal.jsonl",
        "00001/model/weights",
    }
