"""A new SQLite database for MLflow, in a moment."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from headway.data.atomic import write_atomically


def create_database(path: Path) -> None:
    """Make MLflow's SQLite file at `path`, whole or not at all.

    MLflow makes a database by all the migrations it ever had, for seconds. The first of each release is kept
    in the user's cache, and those that follow are copies of it.
    """
    # Under a passing name: one half made, by a process that was killed meanwhile, could never be used again.
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    template = _template()
    try:
        shutil.copyfile(template, draft)
    except OSError:
        _migrate(draft)
        _keep(draft, template)
    draft.replace(path)


def _template() -> Path:
    import mlflow

    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "headway" / f"mlflow-{mlflow.__version__}.db"


def _migrate(path: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments(max_results=1)
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        # The default experiment's artifacts belong beside each database; MLflow makes it where there is none.
        database.execute("DELETE FROM experiments")


def _keep(path: Path, template: Path) -> None:
    """Keep a copy, where the cache can be written to."""
    with contextlib.suppress(OSError):
        write_atomically(template, path.read_bytes())
