"""What trials measure reaches MLflow whole, once and in few calls, though the server is away meanwhile."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headway.runs.context import Context
from headway.runs.journal import Journal
from headway.sweeps.ledger import Ending, Ledger, Trial, TrialState
from headway.sweeps.report import trial_log
from headway.sweeps.report.trial_log import TrialLog
from headway.tracking import Run
from waiting import wait_until

DONE = Ending(TrialState.DONE, "")


class Client:
    """MLflow's own client, which counts its calls, and cannot reach its server while `is_away`."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            if self.is_away:
                raise ConnectionError("https://ann:s3cret@tracking does not answer")
            return getattr(self._client, name)(*arguments, **named)

        return call


@pytest.fixture
def context(make_context) -> Context:
    context: Context = make_context("sweep")
    vars(context.tracking)["client"] = Client(context.tracking.client)
    return context


@pytest.fixture
def parent(context) -> Run:
    return context.tracking.start_run("test", "sweep")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_log, "_PAUSE_SECONDS", 0.05)


def measure(trial: Trial, *steps: int) -> None:
    journal = Journal(trial.journal, 0)
    for step in steps:
        journal.append(step, {"task_loss": 1.0, "validation_loss": 1.0 / step})


def logged(context: Context, parent: Run) -> dict[str, tuple[str, str, list[int]]]:
    """Of each trial: its run's status, the reason for it, and the steps of its validation loss."""
    client = context.tracking.client
    found = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    return {
        run.info.run_name: (
            run.info.status,
            run.data.tags.get("headway.reason", ""),
            [metric.step for metric in client.get_metric_history(run.info.run_id, "validation_loss")],
        )
        for run in found
    }


def test_a_server_that_is_away_for_a_while_ends_nothing_and_misses_nothing(context, parent, tmp_path, caplog):
    ledger, client = Ledger(tmp_path / "trials"), context.tracking.client
    first, second = ledger.new({"seed": 1}), ledger.new({"seed": 2})
    with TrialLog(context, parent) as log:
        measure(first, 10)
        log.changed(first)
        wait_until(lambda: client.calls["log_batch"] > 1)
        client.is_away = True
        calls = client.calls.total()
        measure(second, 10, 20)
        log.changed(second)
        log.changed(first, DONE)
        wait_until(lambda: client.calls.total() > calls + 1)
        client.is_away = False
        log.changed(second, DONE)
    assert logged(context, parent) == {
        "trial 00000": ("FINISHED", "", [10]),
        "trial 00001": ("FINISHED", "", [10, 20]),
    }
    assert "trying again" in caplog.text
    assert "s3cret" not in caplog.text


def test_an_answer_that_was_lost_makes_no_second_run(context, parent, tmp_path, monkeypatch):
    """The server makes a trial's run, but its answer does not arrive."""
    trial, client = Ledger(tmp_path / "trials").new({"seed": 1}), context.tracking.client
    make, lost = client._client.create_run, list[Any]()

    def create_run(*arguments: Any, **named: Any) -> Any:
        made = make(*arguments, **named)
        if not lost:
            lost.append(made)
            raise ConnectionError("away")
        return made

    monkeypatch.setattr(client._client, "create_run", create_run)
    measure(trial, 10)
    with TrialLog(context, parent) as log:
        log.changed(trial, DONE)
        wait_until(lambda: client.calls["set_terminated"])
    assert len(lost) == 1
    assert logged(context, parent) == {"trial 00000": ("FINISHED", "", [10])}
    [run] = context.tracking.children(parent).values()
    assert client.get_run(run.run_id).data.params == {"seed": "1"}


def test_a_server_that_stays_away_is_an_error_at_the_end(context, parent, tmp_path):
    trial = Ledger(tmp_path / "trials").new({})
    with pytest.raises(ConnectionError), TrialLog(context, parent) as log:
        context.tracking.client.is_away = True
        log.changed(trial)


def test_a_stopped_trial_is_finished_and_only_one_that_failed_has_failed(context, parent, tmp_path):
    ledger = Ledger(tmp_path / "trials")
    endings = [DONE, Ending(TrialState.STOPPED, ""), Ending(TrialState.FAILED, "the loss is not finite")]
    with TrialLog(context, parent) as log:
        for ending in endings:
            log.changed(ledger.new({}), ending)
    assert logged(context, parent) == {
        "trial 00000": ("FINISHED", "", []),
        "trial 00001": ("FINISHED", "stopped by the scheduler", []),
        "trial 00002": ("FAILED", "the loss is not finite", []),
    }


def test_what_is_measured_between_two_looks_is_logged_in_one_call(context, parent, tmp_path, monkeypatch):
    monkeypatch.setattr(trial_log, "_PAUSE_SECONDS", 600.0)
    trial, client = Ledger(tmp_path / "trials").new({}), context.tracking.client
    with TrialLog(context, parent) as log:
        for number in range(1, 50):
            measure(trial, *range(1, number))
            log.changed(trial)
        assert client.calls["log_batch"] == 0
    assert client.calls["log_batch"] == 1
    assert logged(context, parent)["trial 00000"][2] == list(range(1, 49))


def test_the_next_driver_continues_open_runs_and_leaves_the_closed_ones(context, parent, tmp_path):
    ledger, client = Ledger(tmp_path / "trials"), context.tracking.client
    closed, going = ledger.new({"seed": 1}), ledger.new({"seed": 2})
    for trial in (closed, going):
        measure(trial, 10, 20)
    with TrialLog(context, parent) as log:
        log.changed(closed, DONE)
        log.changed(going)
    before = client.calls.copy()
    measure(going, 10, 20, 30)  # it began again
    with TrialLog(context, parent) as log:
        log.changed(closed, DONE)
        log.changed(going, DONE)
    assert (client.calls - before)["set_terminated"] == 1
    assert logged(context, parent) == {
        "trial 00000": ("FINISHED", "", [10, 20]),
        "trial 00001": ("FINISHED", "", [10, 20, 30]),
    }


def test_the_folder_of_a_trial_may_not_be_there_yet(context, parent, tmp_path: Path):
    trial = Ledger(tmp_path / "trials").new({"seed": 1})
    with TrialLog(context, parent) as log:
        log.changed(trial)
    assert logged(context, parent) == {"trial 00000": ("RUNNING", "", [])}
