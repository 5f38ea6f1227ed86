"""What a score's spread is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.runs.repeats import spread


def test_a_spread_is_over_the_values_that_are_numbers():
    found = spread([0.5, math.nan, 0.75, 0.25])
    assert found["mean"] == pytest.approx(0.5)
    assert found["std"] == pytest.approx(np.std([0.5, 0.75, 0.25], ddof=1))
    assert len(found["values"]) == 4


def test_values_of_which_none_is_a_number_have_no_mean():
    assert math.isnan(spread([math.nan, math.nan])["mean"])
