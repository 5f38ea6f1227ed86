"""Pictures of a sweep."""

from __future__ import annotations

import math

import pytest

from headway.runs.journal import Journal
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.report.plots import _parallel_coordinates, _scaled, importances


@pytest.fixture
def trials(tmp_path) -> list[Trial]:
    """Five trials, of which two search a setting that the others do not have."""
    ledger = Ledger(tmp_path)
    for number in range(5):
        sampled = (
            {"schedule.name": "wsd", "schedule.decay": 0.1 * number} if number < 2 else {"schedule.name": "x"}
        )
        trial = ledger.new(sampled | {"optimizer.learning_rate": 10.0**-number})
        journal = Journal(trial.journal, start_step=0)
        journal.append(1, {"validation_accuracy": number / 5, "validation_loss": 1.0})
    return ledger.trials()


PATHS = ["optimizer.learning_rate", "schedule.name", "schedule.decay"]


def test_a_setting_that_some_trials_do_not_search_leaves_a_gap(trials):
    [axes] = _parallel_coordinates(trials, PATHS, "accuracy").axes
    heights = [line.get_ydata()[2] for line in axes.lines[:5]]
    assert heights[:2] == [0.0, 1.0]
    assert all(math.isnan(height) for height in heights[2:])


def test_importances_are_of_settings_that_all_trials_search(trials):
    assert set(importances(trials, PATHS, "accuracy")) == {"optimizer.learning_rate", "schedule.name"}


def test_an_axis_is_scaled_by_its_values_alone():
    assert _scaled([1.0, 2.0, 3.0])[0] == [0.0, 0.5, 1.0]
    assert _scaled([1.0, 10.0, 100.0])[0] == pytest.approx([0.0, 0.5, 1.0])
    assert _scaled(["b", "a"]) == ([0.75, 0.25], [(0.25, "a"), (0.75, "b")])
    heights, ticks = _scaled([math.nan, "a"])
    assert math.isnan(heights[0])
    assert ticks == [(0.5, "a")]
    assert _scaled([math.nan])[1] == []
