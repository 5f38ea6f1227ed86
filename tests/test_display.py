"""What a person reads while Headway works."""

from __future__ import annotations

import pytest

from headway.display import Display, duration


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    seconds = [1000.0]
    monkeypatch.setattr("headway.display.time.monotonic", lambda: seconds[0])
    return seconds


def test_the_time_left_counts_neither_the_start_nor_an_earlier_run(clock, capsys):
    display = Display()
    clock[0] += 60.0  # workers start
    display.training("pretrain", 40, 100, {})  # resumed after 40 steps
    clock[0] += 20.0
    display.training("pretrain", 60, 100, {"mlm_loss": 6.5, "tokens_per_second": 12345.6})
    first, second = capsys.readouterr().out.splitlines()
    assert "left" not in first
    assert second == "pretrain  step 60/100  mlm loss 6.500  12,346 tokens/s  40 s left"


def test_a_step_that_runs_twice_under_one_name_ends_without_time_left(clock, capsys):
    display = Display()
    display.training("finetune", 0, 10, {})
    clock[0] += 10.0
    display.training("finetune", 10, 10, {})
    assert capsys.readouterr().out.splitlines()[-1] == "finetune  step 10/10"


def test_elsewhere_than_on_a_terminal_lines_come_every_few_seconds(clock, capsys):
    display = Display()
    for step in range(20):
        display.training("pretrain", step, 100, {})
        clock[0] += 1.0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_line_that_says_nothing_new_comes_once_a_minute(clock, capsys):
    display = Display()
    for _ in range(130):
        display.training("evaluate", 0, 12, {})
        clock[0] += 1.0
    display.training("evaluate", 12, 12, {})
    display.training("evaluate", 12, 12, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["evaluate  step 0/12"] * 3 + ["evaluate  step 12/12"]


def test_runs_side_by_side_have_a_step_each_and_one_time_left(clock, capsys):
    display = Display()
    display.trainings("finetune", {"seed-0": (40, 40), "seed-1": (0, 40), "seed-2": (0, 40)})
    clock[0] += 30.0  # for 60 of 80 steps
    display.trainings("finetune", {"seed-0": (40, 40), "seed-1": (40, 40), "seed-2": (20, 40)})
    clock[0] += 10.0
    display.trainings("finetune", {"seed-0": (40, 40), "seed-1": (40, 40), "seed-2": (40, 40)})
    assert capsys.readouterr().out.splitlines() == [
        "finetune  seed-0 step 40/40  seed-1 step 0/40  seed-2 step 0/40",
        "finetune  seed-0 step 40/40  seed-1 step 40/40  seed-2 step 20/40  10 s left",
        "finetune  seed-0 step 40/40  seed-1 step 40/40  seed-2 step 40/40",
    ]


def test_what_is_counted_has_a_bar_a_rate_and_the_time_left(clock, capsys):
    display = Display()
    display.counted("predict", 250, 1000, "texts")  # of an earlier run
    clock[0] += 10.0
    display.counted("predict", 500, 1000, "texts")
    clock[0] += 20.0
    display.counted("predict", 1000, 1000, "texts")
    assert capsys.readouterr().out.splitlines() == [
        "predict   ━━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄  25%  250/1,000 texts",
        "predict   ━━━━━━━━━━━━┄┄┄┄┄┄┄┄┄┄┄┄  50%  500/1,000 texts  25 texts/s  20 s left",
        "predict   ━━━━━━━━━━━━━━━━━━━━━━━━ 100%  1,000/1,000 texts  25 texts/s",
    ]


def test_a_quiet_display_writes_nothing(capsys):
    display = Display(quiet=True)
    display.line("a")
    display.table("t", ["a"], [["b"]])
    display.training("pretrain", 1, 2, {})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (185.0, "3 min 05 s"), (7800.0, "2 h 10 min")],
)
def test_durations_are_said_as_people_do(seconds, text):
    assert duration(seconds) == text
