"""What workers measured reaches MLflow whole, in order and once, whoever dies and whatever is away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from headway.runs.journal import Entry, Journal, JournalFollower, JournalReader, Once, read_journal
from headway.tracking import Tracking
from waiting import wait_until


def steps_of(entries: list[Entry]) -> list[int]:
    return [entry.step for entry in entries]


def test_resumed_journal_forgets_what_will_be_measured_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", 0)
    for step in (0, 10, 20, 30):
        journal.append(step, {"loss": 1.0 / (step + 1)})
    Journal(tmp_path / "journal", 20)
    assert steps_of(read_journal(tmp_path / "journal")) == [0, 10, 20]


def test_run_without_a_state_starts_an_empty_journal(tmp_path: Path) -> None:
    Journal(tmp_path / "journal", 0).append(0, {"loss": 1.0})
    Journal(tmp_path / "journal", 0)
    assert read_journal(tmp_path / "journal") == []


def test_writer_of_an_earlier_start_is_not_heard_any_more(tmp_path: Path) -> None:
    not_quite_dead = Journal(tmp_path / "journal", 0)
    not_quite_dead.append(10, {"loss": 1.0})
    now = Journal(tmp_path / "journal", 10)
    not_quite_dead.append(20, {"loss": 9.0})
    now.append(20, {"loss": 0.5})
    assert [(entry.step, entry.metrics) for entry in read_journal(tmp_path / "journal")] == [
        (10, {"loss": 1.0}),
        (20, {"loss": 0.5}),
    ]


def test_half_a_line_is_not_read_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    Journal(path, 0).append(10, {"loss": 1.0})
    with path.open("a") as stream:
        stream.write('{"step": 20, "met')
    assert steps_of(read_journal(path)) == [10]


def test_follower_reads_a_replaced_journal_from_its_start(tmp_path: Path) -> None:
    received: list[Entry] = []
    journal = Journal(tmp_path / "journal", 0)
    with JournalFollower(JournalReader(tmp_path / "journal"), received.extend):
        journal.append(10, {"loss": 1.0})
        journal.append(20, {"loss": 0.9})
        wait_until(lambda: len(received) == 2)
        resumed = Journal(tmp_path / "journal", 10)
        resumed.append(20, {"loss": 0.9})
    assert steps_of(received) == [10, 20, 10, 20]


def test_each_step_of_each_metric_passes_once() -> None:
    once = Once({"loss": 10})
    entries = [Entry(10, {"loss": 1.0, "accuracy": 0.5}), Entry(20, {"loss": 0.9}), Entry(20, {"loss": 0.9})]
    new = once.new(entries)
    assert [(entry.step, entry.metrics) for entry in new] == [(10, {"accuracy": 0.5}), (20, {"loss": 0.9})]
    assert once.new(entries) == new, "not marked: it may have failed"
    once.mark(new)
    assert once.new(entries) == []


def test_what_a_server_that_was_away_missed_is_handed_on_later(tmp_path: Path) -> None:
    received: list[Entry] = []
    is_away = True

    def receive(entries: list[Entry]) -> None:
        if is_away:
            raise ConnectionError("away")
        received.extend(entries)

    journal = Journal(tmp_path / "journal", 0)
    with JournalFollower(JournalReader(tmp_path / "journal"), receive):
        for step in range(5):
            journal.append(step, {"loss": float(step)})
            time.sleep(0.1)
        is_away = False
        journal.append(5, {"loss": 5.0})
    assert steps_of(received) == [0, 1, 2, 3, 4, 5]


def test_server_that_stays_away_is_an_error_at_the_end(tmp_path: Path) -> None:
    def receive(entries: list[Entry]) -> None:
        raise ConnectionError("away")

    journal = Journal(tmp_path / "journal", 0)
    with pytest.raises(ConnectionError), JournalFollower(JournalReader(tmp_path / "journal"), receive):
        journal.append(0, {"loss": 1.0})


def test_killed_driver_goes_on_with_its_mlflow_run(tmp_path: Path) -> None:
    tracking = Tracking.at(tmp_path)
    with tracking.run("experiment", "pretrain", {"seed": 1}, "token") as run:
        run.log_metrics([(0, {"loss": 2.0}), (10, {"loss": 1.0})], [1000, 2000])
    with tracking.run("experiment", "pretrain", {"seed": 1}, "token") as again:
        assert again.run_id == run.run_id
        assert tracking.client.get_run(run.run_id).info.status == "RUNNING"
        new = Once(again.logged_steps()).new([Entry(10, {"loss": 1.0}, 2500), Entry(20, {"loss": 0.5}, 3000)])
        again.log_metrics([entry[:2] for entry in new], [entry.time for entry in new])
    history = tracking.client.get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value, metric.timestamp) for metric in history] == [
        (0, 2.0, 1000),
        (10, 1.0, 2000),
        (20, 0.5, 3000),
    ]
    with tracking.run("experiment", "pretrain", {"seed": 1}, "another token") as other:
        assert other.run_id != run.run_id


def test_what_a_server_refused_is_told_without_its_password(tmp_path, caplog):
    Journal(tmp_path / "journal", 0).append(1, {"loss": 1.0})
    tries: list[list[Entry]] = []

    def receive(entries: list[Entry]) -> None:
        tries.append(entries)
        if len(tries) == 1:
            raise ConnectionError("API request to https://ann:s3cret@tracking/api failed")

    with JournalFollower(JournalReader(tmp_path / "journal"), receive):
        wait_until(lambda: len(tries) > 1)
    assert "https://ann:***@tracking/api failed" in caplog.text
    assert "s3cret" not in caplog.text
