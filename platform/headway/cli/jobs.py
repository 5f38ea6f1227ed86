"""`headway submit`, `status`, `logs` and `cancel`: pipelines as jobs of a cluster, by Ray's job API."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headway.cli.options import FILE, JSON, SET
from headway.cluster import secrets
from headway.config.base import ConfigError
from headway.config.loading import load_pipeline
from headway.runs.lineage.provenance import GIT_VARIABLE, git_facts

_API = click.option(
    "--api",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    help="URL of the cluster's dashboard.",
)
_JOB = click.argument("job")
_NOT_UPLOADED = [".git", ".venv", "runs", "**/__pycache__"]
_PASSED_ON = ["MLFLOW_TRACKING_URI"]
_LOOK_SECONDS = 1.0
_SECONDS_TO_SAVE = 120
"""How long a cancelled job may take to save its state before Ray kills it; Ray's default is 3 s."""


@click.command()
@FILE
@SET
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder on storage that all machines of the cluster share.",
)
@click.option("--name", help="Name of the job; a new one if not given.")
@click.option("--wait", is_flag=True, help="Print the job's output until it ends, and exit as it does.")
@_API
def submit(
    file: Path, overrides: tuple[str, ...], runs: Path, name: str | None, wait: bool, api: str
) -> None:
    """Run the pipeline in FILE on the cluster, independently of this machine; prints the job's name.

    The working folder is uploaded, and the packages in its requirements.txt are installed.
    """
    load_pipeline(file, overrides)
    if file.is_absolute() or not runs.is_absolute():
        raise ConfigError(
            f"submit: FILE {str(file)!r} must be a relative path in the working folder, which is uploaded, "
            f"and --runs {str(runs)!r} an absolute path that all machines share"
        )
    command = ["python", "-m", "headway.cli.main", "run", str(file), "--runs", str(runs), "--address", "auto"]
    command += [part for override in overrides for part in ("--set", override)]
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    shown, secret = secrets.split_secrets(given)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(_SECONDS_TO_SAVE), **shown}
    variables[GIT_VARIABLE] = json.dumps(git_facts())
    environment: dict[str, Any] = {"working_dir": ".", "excludes": _NOT_UPLOADED, "env_vars": variables}
    if Path("requirements.txt").is_file():
        environment["pip"] = "requirements.txt"
    with secrets.packed_for_job(secret) as package:
        if package is not None:
            environment["py_modules"] = [package]
        client = _client(api)
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env=environment, submission_id=name)
    click.echo(job)
    if wait:
        _follow(client, job)


@click.command()
@_JOB
@click.option("--wait", is_flag=True, help="Wait until the job ends, and exit as it does.")
@JSON
@_API
def status(job: str, wait: bool, as_json: bool, api: str) -> None:
    """Print the status of JOB: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    client = _client(api)
    found = _of_known_job(client.get_job_info, job)
    if wait:
        found = _ended(client, job)
    click.echo(json.dumps(_facts(job, found)) if as_json else found.status.value)
    if wait:
        sys.exit(_exit_code(found))


@click.command()
@_JOB
@_API
@click.option("--follow", is_flag=True, help="Keep printing until the job ends, and exit as it does.")
def logs(job: str, api: str, follow: bool) -> None:
    """Print the output of JOB."""
    client = _client(api)
    written = _of_known_job(client.get_job_logs, job)
    if follow:
        _follow(client, job)
    else:
        click.echo(written, nl=False)


@click.command()
@_JOB
@_API
def cancel(job: str, api: str) -> None:
    """Stop JOB; a training run saves its state, from which the same pipeline continues later."""
    _of_known_job(_client(api).stop_job, job)


def _client(api: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(api)
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(
            f"--api: no dashboard of a cluster answers at {api!r}: {str(error).splitlines()[0]}"
        ) from error


def _of_known_job(function: Callable[[str], Any], job: str) -> Any:
    try:
        return function(job)
    except RuntimeError as error:
        if "does not exist" in str(error):
            raise ConfigError(f"job: {job!r} does not exist on this cluster") from error
        raise


def _follow(client: Any, job: str) -> None:
    """Print a job's output until it ends, and exit with its code if that is not 0."""
    asyncio.run(_tail(client, job))
    found = _ended(client, job)  # the output may end a moment before
    if code := _exit_code(found):
        click.echo(f"job {job!r}: {found.status.value}", err=True)
        sys.exit(code)


def _ended(client: Any, job: str) -> Any:
    """What the cluster knows of a job, once it has ended."""
    while not (found := client.get_job_info(job)).status.is_terminal():
        time.sleep(_LOOK_SECONDS)
    return found


def _exit_code(found: Any) -> int:
    """That of the job's command, which tells a bad setting from a step that failed; 1 if it has none."""
    return 0 if found.status.value == "SUCCEEDED" else found.driver_exit_code or 1


def _facts(job: str, found: Any) -> dict[str, Any]:
    return {
        "job": job,
        "status": found.status.value,
        "message": (found.message or "").partition("\n")[0],
        "exit_code": found.driver_exit_code,
        "started": _seconds(found.start_time),
        "ended": _seconds(found.end_time),
    }


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


async def _tail(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        click.echo(lines, nl=False)
