"""Creates a SQLite database for MLflow quickly."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

from headway.data.atomic import write_atomically


def create_database(path: Path) -> None:
    """Create MLflow's SQLite file at `path`, atomically.

    MLflow creates a database by running all migrations it ever had, which takes seconds. The first database
    of each release is kept in the user's cache, and later ones are copies of it.
    """
    # Under a temporary name: a database left half made by a killed process could never be used.
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
        # The default experiment names a folder for artifacts; MLflow creates it again for each copy.
        database.execute("DELETE FROM experiments")


def _keep(path: Path, template: Path) -> None:
    """Keep a copy in the cache, if it can be written to."""
    with contextlib.suppress(OSError):
        write_atomically(template, path.read_bytes())
