"""Counts of all classes are shown and logged, and gaps told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from headway.display import Display
from headway.runs.class_counts import tell_class_counts
from headway.tasks.rows import Rows
from headway.tracking import tracking_uri


def rows(*classes):
    return Rows(
        [[""]] * len(classes), list(classes), {"tokens": [[]] * len(classes)}, [], [[n] for n in classes]
    )


@pytest.fixture
def told(make_context, capsys, tmp_path):
    """What is told of splits: on the screen, and to MLflow."""

    def tell(splits):
        context = replace(make_context("counts"), display=Display(quiet=False))
        with context.tracking.run("test", "counts", {}) as run:
            tell_class_counts(splits, context, run)
        client = MlflowClient(tracking_uri(context.root))
        names = [file.path for file in client.list_artifacts(run.run_id)]
        logged = None
        if "classes.json" in names:
            path = client.download_artifacts(run.run_id, "classes.json", str(tmp_path))
            logged = json.loads(Path(path).read_text())
        return " ".join(capsys.readouterr().out.split()), logged

    return tell


def test_the_counts_of_each_class_are_shown_and_logged(told):
    shown, logged = told({"train": rows("a", "b", "a"), "validation": rows("b", "a"), "test": rows("a", "b")})
    assert "rows of each class (train / validation / test): a 2 / 1 / 1, b 1 / 1 / 1" in shown
    assert logged == {"train": {"a": 2, "b": 1}, "validation": {"a": 1, "b": 1}, "test": {"a": 1, "b": 1}}
    assert "no row" not in shown


def test_a_class_that_a_split_has_no_row_of_is_named(told):
    shown, logged = told({"train": rows("a", "b", "rare"), "validation": rows("b", "a")})
    assert "no row in the validation split, so nothing is known of: 'rare'" in shown
    assert logged["validation"] == {"a": 1, "b": 1, "rare": 0}


def test_many_classes_are_a_table(told):
    many = [f"class-{i}" for i in range(20)]
    shown, _ = told({"train": rows(*many, many[0]), "validation": rows(*many)})
    assert "│ class-0 │ 2 │ 1 │" in shown


def test_a_task_without_classes_says_nothing(told):
    plain = Rows([[""]], [1.5], {"tokens": [[]]}, [], [[]])
    assert told({"train": plain}) == ("", None)
