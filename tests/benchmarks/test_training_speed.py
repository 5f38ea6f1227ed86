"""Contestants that fail, hang or die are rows; times and tokens leave warm-up out; the best peer is named."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from lib.training_speed import clock as clock_module
from lib.training_speed.clock import Clock
from lib.training_speed.driver import OUT_OF_TIME, run_jobs
from lib.training_speed.report import row, summary
from lib.training_speed.results import Conditions, Failure, Job, Machine, Outcome, Speed
from lib.training_speed.worker import GO_ON_ELSEWHERE

ROOT = Path(__file__).parents[2]
MACHINE = Machine("a CPU", "fp32", "2", "5")
JOBS = [Job("tiny", name) for name in ("headway", "hangs", "dies", "breaks", "trainer", "loop")]


@pytest.fixture(autouse=True)
def _found_by_spawned_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They import this module by its name, and `pytest` alone does not put the project on the path."""
    monkeypatch.syspath_prepend(str(ROOT))


def speed(tokens_per_second: float) -> Speed:
    return Speed(tokens_per_second, 0.5, 1.0, 2.0, 3.0, 4, 0, "text")


def conditions(*, shares_process: bool) -> Conditions:
    return Conditions("cpu", 3, None, 0, shares_process)


def pretend(jobs: list[Job], _: Conditions, answers: Connection, log: Path) -> None:
    """What a process runs instead of measuring."""
    answers.send(MACHINE)
    for job in jobs:
        if job.contestant == "hangs":
            time.sleep(600)
        if job.contestant == "dies":
            log.write_text("Killed by a test\n")
            os._exit(9)
        answers.send(speed(float(len(job.contestant))))
        if job.contestant == "breaks":
            os._exit(GO_ON_ELSEWHERE)


@pytest.mark.parametrize("shares_process", [True, False])
def test_a_contestant_that_hangs_or_dies_costs_only_its_own_row(shares_process: bool, tmp_path: Path):
    settings = conditions(shares_process=shares_process)
    ran = list(run_jobs(JOBS, settings, log=tmp_path / "log", limit=15.0, target=pretend))

    outcomes = {job.contestant: outcome for job, outcome, _ in ran}
    assert list(outcomes) == [job.contestant for job in JOBS]
    assert outcomes["hangs"] == Failure("took longer than 15 s")
    assert outcomes["dies"] == Failure("its process ended with exit code 9: Killed by a test")
    assert all(outcomes[name] == speed(len(name)) for name in ("headway", "breaks", "trainer", "loop"))
    assert ran[0][2] == MACHINE


def test_what_has_not_run_by_the_deadline_is_told(tmp_path: Path):
    jobs = [Job("tiny", "hangs"), Job("tiny", "loop")]
    settings, deadline = conditions(shares_process=True), time.monotonic() + 1.0
    ran = run_jobs(jobs, settings, log=tmp_path / "log", limit=60.0, deadline=deadline, target=pretend)

    assert [outcome for _, outcome, _ in ran] == [OUT_OF_TIME, OUT_OF_TIME]


def test_a_clock_counts_only_what_comes_after_warm_up():
    clock = Clock(torch.device("cpu"), steps=3, seconds=None)
    ended = [clock.step_ended(tokens) for tokens in (100, 100, 1, torch.tensor(2), 3)]

    assert ended == [False, False, False, False, True]
    assert (clock.steps, clock.tokens) == (3, 6)
    assert clock.seconds > 0.0 and clock.warmup_seconds > 0.0


def test_warm_up_lasts_until_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch):
    graphs = iter([0, 1, 1, 2, 2, 2, 3, 3])
    monkeypatch.setattr(clock_module, "graphs_compiled", lambda: next(graphs))
    clock = Clock(torch.device("cpu"), steps=2, seconds=None)
    # Compiling in the first and the third; warm after the fifth; two are timed, and one compiled.
    assert [clock.step_ended(1) for _ in range(7)] == [False] * 6 + [True]
    assert (clock.steps, clock.late_compilations) == (2, 1)


def test_the_summary_names_the_best_peer_and_what_failed():
    outcomes: dict[Job, Outcome] = {
        Job("tiny", "headway"): speed(60.0),
        Job("tiny", "trainer"): speed(20.0),
        Job("tiny", "loop"): speed(30.0),
        Job("base", "trainer"): Failure("no memory"),
    }
    figures = summary(outcomes, conditions(shares_process=False), MACHINE)

    assert figures["ratio_vs_trainer_tiny"] == 3.0
    assert (figures["best_peer_tiny"], figures["ratio_vs_best_peer_tiny"]) == ("loop", 2.0)
    assert figures["memory_ratio_vs_trainer_tiny"] == 1.0
    assert figures["failed"] == ["trainer_base"]
    assert row(Job("base", "trainer"), Failure("no memory"), None).endswith("failed: no memory")
