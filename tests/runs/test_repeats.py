"""How far several runs of one step have come, and what a score's spread over them is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.runs.journal import Journal
from headway.runs.paths import RunPaths
from headway.runs.repeats import VariantSteps, spread


def test_each_run_has_steps_of_its_own_and_one_that_ended_early_is_done(tmp_path):
    folders = {name: tmp_path / name for name in ("seed-0", "seed-1", "seed-2")}
    steps = VariantSteps(folders, dict.fromkeys(folders, 40))
    assert steps.read() == {"seed-0": (0, 40), "seed-1": (0, 40), "seed-2": (0, 40)}
    journals = {}
    for name in ("seed-0", "seed-1"):
        folders[name].mkdir()
        journals[name] = Journal(RunPaths.at(folders[name]).journal, 0)
    journals["seed-0"].append(10, {"classification_loss": 0.5})
    journals["seed-0"].append(20, {"classification_loss": 0.4})
    journals["seed-1"].append(1, {"classification_loss": 0.6})
    assert steps.read() == {"seed-0": (20, 40), "seed-1": (1, 40), "seed-2": (0, 40)}
    (folders["seed-0"] / "model").mkdir()  # its loss got no better
    journals["seed-1"].append(10, {"classification_loss": 0.5})
    assert steps.read() == {"seed-0": (40, 40), "seed-1": (10, 40), "seed-2": (0, 40)}


def test_a_spread_is_over_the_values_that_are_numbers():
    found = spread([0.5, math.nan, 0.75, 0.25])
    assert found["mean"] == pytest.approx(0.5)
    assert found["std"] == pytest.approx(np.std([0.5, 0.75, 0.25], ddof=1))
    assert len(found["values"]) == 4


def test_values_of_which_none_is_a_number_have_no_mean():
    assert math.isnan(spread([math.nan, math.nan])["mean"])
