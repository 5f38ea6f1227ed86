"""Environment variables that Ray's workers and jobs get, and that its dashboard does not show.

Ray shows every job's runtime environment, variables and all, in its dashboard and its logs. A function that
processes call as they start, and a folder that travels with a job, are shown by their names only.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from headway.redaction import holds_secret

_PACKAGE = "headway_job_secrets"
_FILE = "environment.json"


def split_secrets(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Variables that may be shown, and those that hold a password."""
    secret = {name: value for name, value in variables.items() if holds_secret(value)}
    return {name: value for name, value in variables.items() if name not in secret}, secret


def setter_of(variables: Mapping[str, str]) -> Callable[[], None]:
    """What sets variables in the process that calls it; made here, it is pickled with their values."""
    values = dict(variables)

    def set_variables() -> None:
        import os

        os.environ.update(values)

    return set_variables


@contextmanager
def packed_for_job(variables: Mapping[str, str]) -> Iterator[str | None]:
    """A folder for a job's `py_modules` that `take_from_job` reads there; None if there are no variables."""
    if not variables:
        yield None
        return
    with TemporaryDirectory(prefix="headway-") as folder:
        package = Path(folder) / _PACKAGE
        package.mkdir(mode=0o700)
        (package / "__init__.py").touch()
        file = os.open(package / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            json.dump(dict(variables), stream)
        yield str(package)


def take_from_job() -> None:
    """In a job that was submitted with secret variables, set them."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.origin is not None:
        content = Path(spec.origin).with_name(_FILE).read_text(encoding="utf-8")
        os.environ.update(json.loads(content))
