"""A database that is a copy is one that MLflow would have made."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from headway.tracking.database import create_database


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "headway" / f"mlflow-{mlflow.__version__}.db"


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Of every table, and how the tables are made."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        found = database.execute("SELECT type, name, sql FROM sqlite_master ORDER BY type, name").fetchall()
        # MLflow's migrations write a table's constraints in no certain order.
        made = [(kind, name, sorted(re.findall(r"\w+", sql or ""))) for kind, name, sql in found]
        tables = [name for kind, name, _ in made if kind == "table"]
        return {"": made} | {name: database.execute(f"SELECT * FROM {name}").fetchall() for name in tables}


def use(path: Path) -> MlflowClient:
    client = MlflowClient(tracking_uri=f"sqlite:///{path}")
    run = client.create_run(client.create_experiment("ours"))
    client.log_metric(run.info.run_id, "loss", 0.5)
    client.create_registered_model("topics")
    return client


def test_the_first_and_its_copies_are_what_mlflow_makes(cache, tmp_path):
    first, second, plain = (tmp_path / name for name in ("first.db", "second.db", "plain.db"))
    create_database(first)
    assert cache.is_file()
    create_database(second)
    MlflowClient(tracking_uri=f"sqlite:///{plain}").search_experiments()
    expected = rows(plain)
    assert [row[1] for row in expected.pop("experiments")] == ["Default"]
    for path in (first, second):
        found = rows(path)
        assert found.pop("experiments") == []
        assert found == expected
        # MLflow makes the missing experiment where it opens the file.
        names = {experiment.name: experiment.experiment_id for experiment in use(path).search_experiments()}
        assert names.keys() == {"Default", "ours"} and names["Default"] == "0"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    create_database(tmp_path / "runs.db")
    use(tmp_path / "runs.db")


def test_many_at_once_are_whole(cache, tmp_path):
    create_database(tmp_path / "first.db")
    paths = [tmp_path / f"{number}.db" for number in range(8)]
    threads = [threading.Thread(target=create_database, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = rows(tmp_path / "first.db")
    assert all(rows(path) == expected for path in paths)
