"""`headway up` and `down`: the machines of a cluster, by Ray's launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from headway.config.base import ConfigError

_CLUSTER_FILE = click.argument("cluster", type=click.Path(path_type=Path), default=Path("cluster.yaml"))


@click.command()
@_CLUSTER_FILE
def up(cluster: Path) -> None:
    """Start or update the machines described in the file CLUSTER."""
    _launch("up", cluster)


@click.command()
@_CLUSTER_FILE
def down(cluster: Path) -> None:
    """Terminate the machines described in the file CLUSTER."""
    _launch("down", cluster)


def _launch(verb: str, cluster: Path) -> None:
    if not cluster.is_file():
        raise ConfigError(
            f"cluster: {str(cluster)!r} does not exist; cluster.yaml in Headway's repository is a template"
        )
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", verb, "--yes", str(cluster)], check=False
    )
    if done.returncode:
        raise RuntimeError(f"ray {verb} ended with exit code {done.returncode}")
