"""What a run was made with: code, versions, machines, as tags of its MLflow run."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import headway
from headway.cluster.description import describe_machines
from headway.redaction import redacted

GIT_VARIABLE = "HEADWAY_GIT"
"""Environment variable with the git facts of whoever submitted a job: it travels without `.git`."""

VERSION = "headway.version"
SETTINGS_DIGEST = "headway.settings_digest"
DATA_DIGEST = "headway.data_digest"

_PACKAGES = ("torch", "ray", "transformers", "tokenizers", "datasets", "mlflow", "numpy")
_GIT_SECONDS = 10.0


def provenance() -> dict[str, str]:
    """Tags that are the same for all runs of a process, under MLflow's own names if it has one."""
    return {
        **git_facts(),
        "mlflow.user": _user(),
        "mlflow.source.name": redacted(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
        "mlflow.source.type": "LOCAL",
        VERSION: headway.__version__,
        "headway.packages": _packages(),
        **describe_machines(),
    }


@cache
def git_facts() -> dict[str, str]:
    """Commit, branch and address of the working folder's repository; empty if it is in none.

    `mlflow.source.git.dirty` says whether files that git tracks differ from the commit. Call it before Ray is
    connected: it starts processes.
    """
    given = os.environ.get(GIT_VARIABLE)
    if given is not None:
        facts: dict[str, str] = json.loads(given)
        return facts
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git("status", "--porcelain", "--untracked-files=no")
    facts = {
        "mlflow.source.git.commit": commit,
        "mlflow.source.git.dirty": "unknown" if changed is None else str(bool(changed)).lower(),
        "mlflow.source.git.branch": _git("rev-parse", "--abbrev-ref", "HEAD") or "",
        "mlflow.source.git.repoURL": redacted(_git("config", "--get", "remote.origin.url") or ""),
    }
    return {name: value for name, value in facts.items() if value}


def digest_of(value: Any) -> str:
    """A short digest of something in JSON's types."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def digest_of_all(digests: Iterable[str]) -> str:
    """The digest itself if there is one, otherwise one of them all; empty without any."""
    distinct = sorted({digest for digest in digests if digest})
    return distinct[0] if len(distinct) == 1 else digest_of(distinct) if distinct else ""


def _git(*arguments: str) -> str | None:
    """What git answers; None if there is no git, or no repository, or it takes too long."""
    # Without optional locks it never stands in the way of the user's own git.
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def _packages() -> str:
    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *versions])


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return str(os.getuid())
