"""`headway up`, `down`, `submit`, `status`, `logs` and `cancel`: thin over Ray's launcher and its job API."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headway.cli.options import FILE, SET
from headway.config.base import ConfigError
from headway.config.loading import load_pipeline

_CLUSTER_FILE = click.argument("cluster", type=click.Path(path_type=Path), default=Path("cluster.yaml"))
_API = click.option(
    "--api",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    help="The cluster's dashboard.",
)
_JOB = click.argument("job")
_STAYS_HERE = [".git", ".venv", "runs", "**/__pycache__"]
_SECONDS_TO_SAVE = 120
"""What a cancelled job has to save its state, before Ray kills it; 3 s where not set."""


@click.command()
@_CLUSTER_FILE
def up(cluster: Path) -> None:
    """Start, or bring up to date, the machines that CLUSTER names."""
    _launch("up", cluster)


@click.command()
@_CLUSTER_FILE
def down(cluster: Path) -> None:
    """Give the machines of CLUSTER back."""
    _launch("down", cluster)


@click.command()
@FILE
@SET
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder that all machines of the cluster share.",
)
@click.option("--name", help="The job's name; a new one where not given.")
@_API
def submit(file: Path, overrides: tuple[str, ...], runs: Path, name: str | None, api: str) -> None:
    """Run the pipeline FILE on the cluster, where it goes on without this machine; prints the job's name.

    The working folder travels, and what its requirements.txt names is installed.
    """
    load_pipeline(file, overrides)
    if file.is_absolute() or not runs.is_absolute():
        raise ConfigError(
            f"submit: FILE {str(file)!r} should be in the working folder, which travels, "
            f"and --runs {str(runs)!r} an absolute path that all machines share"
        )
    command = ["python", "-m", "headway.cli.main", "run", str(file), "--runs", str(runs), "--address", "auto"]
    command += [part for override in overrides for part in ("--set", override)]
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_SECONDS_TO_SAVE)}
    if "MLFLOW_TRACKING_URI" in os.environ:
        variables["MLFLOW_TRACKING_URI"] = os.environ["MLFLOW_TRACKING_URI"]
    environment: dict[str, Any] = {"working_dir": ".", "excludes": _STAYS_HERE, "env_vars": variables}
    if Path("requirements.txt").is_file():
        environment["pip"] = "requirements.txt"
    entrypoint = shlex.join(command)
    click.echo(_client(api).submit_job(entrypoint=entrypoint, runtime_env=environment, submission_id=name))


@click.command()
@_JOB
@_API
def status(job: str, api: str) -> None:
    """How JOB stands: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    click.echo(_known(_client(api).get_job_status, job))


@click.command()
@_JOB
@_API
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
def logs(job: str, api: str, follow: bool) -> None:
    """What JOB wrote."""
    client = _client(api)
    written = _known(client.get_job_logs, job)
    if follow:
        asyncio.run(_tail(client, job))
    else:
        click.echo(written, nl=False)


@click.command()
@_JOB
@_API
def cancel(job: str, api: str) -> None:
    """Stop JOB; a training run saves its state first, and the same pipeline goes on from there."""
    _known(_client(api).stop_job, job)


def _launch(verb: str, cluster: Path) -> None:
    if not cluster.is_file():
        raise ConfigError(f"cluster: {str(cluster)!r} does not exist; cluster.yaml is a template")
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", verb, "--yes", str(cluster)], check=False
    )
    if done.returncode:
        raise RuntimeError(f"ray {verb} ended with exit code {done.returncode}")


def _client(api: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(api)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"--api: no cluster's dashboard at {api!r}: {str(error).splitlines()[0]}"
        ) from error


def _known(function: Callable[[str], Any], job: str) -> Any:
    try:
        return function(job)
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise ConfigError(f"job: {job!r} is unknown to this cluster") from error
        raise


async def _tail(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        click.echo(lines, nl=False)
