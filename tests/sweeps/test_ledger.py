"""What is known of trials on disk."""

from __future__ import annotations

import json

import pytest

from headway.runs.journal import Journal
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


def test_the_first_record_of_an_end_stays(tmp_path):
    trial = Ledger(tmp_path).new({})
    trial.end(TrialState.STOPPED)
    trial.end(TrialState.FAILED, "later")
    assert trial.ended == (TrialState.STOPPED, "")


def test_trials_are_numbered_on_and_found_in_their_order(tmp_path):
    ledger = Ledger(tmp_path / "not" / "there")
    assert ledger.trials() == []
    for number in range(11):
        ledger.new({"number": number})
    (ledger.folder / "00011").mkdir()  # never given values
    (ledger.folder / "ids").mkdir()
    (ledger.folder / "ids" / "trial.json").touch()
    again = Ledger(ledger.folder)
    assert [trial.sampled for trial in again.trials()] == [{"number": number} for number in range(11)]
    assert [trial.name for trial in again.trials()][-2:] == ["trial 00009", "trial 00010"]
    assert again.new({"number": 11}).number == 11
    assert again.trials()[-1].sampled == {"number": 11}
    again.trials().clear()
    assert len(again.trials()) == 12


def test_a_trials_values_may_change_on_the_way(tmp_path):
    trial = Ledger(tmp_path).new({"lr": 1e-3})
    trial.begin({"lr": 2e-3, "name": "ü"})
    assert Ledger(tmp_path).trials()[0].sampled == {"lr": 2e-3, "name": "ü"}


def test_rounds_are_counted_from_one(tmp_path):
    trial = Ledger(tmp_path).new({})
    trial.record_steps_per_round(5)
    assert [trial.round_of(step) for step in (1, 4, 5, 6, 10, 11)] == [1, 1, 1, 2, 2, 3]


def test_evaluations_are_what_was_measured_on_validation_rows_after_the_start(tmp_path):
    trial = Ledger(tmp_path).new({})
    assert trial.evaluations() == []
    journal = Journal(trial.journal, start_step=0)
    journal.append(0, {"validation_loss": 3.0})
    journal.append(1, {"loss": 2.9})
    journal.append(2, {"loss": 2.5, "validation_loss": 2.6, "validation_macro_f1": 0.4})
    journal.append(3, {"validation_accuracy": 0.1})
    assert trial.evaluations() == [(2, {"loss": 2.6, "macro_f1": 0.4}, 0, "")]


def test_a_trial_keeps_the_number_under_which_tune_first_saw_it(tmp_path):
    """A clone takes over the number of another trial, but keeps its own id."""
    ledger = Ledger(tmp_path)
    first, second = ledger.new({"lr": 1}), ledger.new({"lr": 2})
    assert ledger.known_as("a1b2", 0) == first
    assert ledger.known_as("c3d4", 1) == second
    assert ledger.known_as("c3d4", 0) == second
    assert Ledger(tmp_path).known_as("c3d4", 7) == second


def test_what_only_training_needed_is_deleted_and_other_files_stay(tmp_path):
    ledger = Ledger(tmp_path)
    trials = [ledger.new({}), ledger.new({})]
    for trial in trials:
        for name in ("best", "population", "state", "train", "model", "plots"):
            (trial.folder / name).mkdir()
    ledger.known_as("a1b2", 0)
    ledger.keep_only(trials[0])
    left = [{path.name for path in trial.folder.iterdir()} for trial in trials]
    assert left == [{"trial.json", "model", "plots"}, {"trial.json", "plots"}]
    assert not (tmp_path / "ids").exists()
    ledger.keep_only(trials[0])  # as after a sweep that was killed while it tidied up
    assert trials[0].model.is_dir()
