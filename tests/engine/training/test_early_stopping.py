"""The best evaluation of a run, and when a run ends early."""

from __future__ import annotations

import math

import pytest

from headway.config.base import ConfigError
from headway.engine.training.early_stopping import NoProgress, Selection


def evaluations(values, name="accuracy"):
    return [(step, {f"validation_{name}": value}) for step, value in enumerate(values)]


@pytest.mark.parametrize(
    ("name", "values", "best"),
    [
        ("accuracy", [0.9, 0.1, 0.5, 0.5, 0.4], 2),
        ("loss", [0.1, 0.9, 0.5, 0.5, 0.7], 2),
        ("rmse", [0.0, 3.0, 2.0, 1.0], 3),
    ],
)
def test_the_best_is_the_first_of_equals_and_never_the_model_as_it_came(name, values, best):
    kept: list[int] = []
    selection = Selection(name, None, kept.append)
    for step, metrics in evaluations(values, name):
        selection(step, metrics)
    assert selection.best_step == best
    assert kept[-1] == best
    assert 0 not in kept


@pytest.mark.parametrize("name", ["accuracy", "loss"])
def test_a_first_evaluation_that_is_not_a_number_is_beaten_by_any_number(name):
    kept: list[int] = []
    selection = Selection(name, None, kept.append)
    for step, metrics in evaluations([0.0, math.nan, math.nan, 0.5, math.nan], name):
        selection(step, metrics)
    assert selection.best_step == 3
    assert kept == [1, 3]


def test_a_run_ends_after_its_patience():
    selection = Selection("accuracy", 2)
    seen = 0
    with pytest.raises(NoProgress):
        for step, metrics in evaluations([0, 0.5, 0.4, 0.6, 0.6, 0.5, 0.9]):
            selection(step, metrics)
            seen = step
    assert seen == 4
    assert selection.best_step == 3


def test_a_resumed_run_ends_where_it_would_have():
    history = evaluations([0, 0.5, 0.4])
    selection = Selection("accuracy", 2)
    selection.replay(history)
    with pytest.raises(NoProgress):
        selection(3, {"validation_accuracy": 0.3})


def test_reports_without_an_evaluation_do_not_count():
    selection = Selection("accuracy", 1)
    selection(1, {"validation_accuracy": 0.5})
    for step in range(2, 9):
        selection(step, {"classification_loss": 1.0})
    assert selection.best_step == 1


def test_an_unknown_measure_is_named_before_anything_is_learnt():
    with pytest.raises(ConfigError, match="best_by: 'f1' is not measured; allowed: accuracy"):
        Selection("f1", None)(0, {"validation_accuracy": 0.5})
