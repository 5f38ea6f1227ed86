"""Runs a single step outside any pipeline, in its own folder."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from headway.config.base import Config, ConfigError
from headway.data.atomic import write_atomically
from headway.display import Display
from headway.pipeline.digest import Inputs, step_digest
from headway.pipeline.failure import failure_kept
from headway.pipeline.run import RESULT, step_function, uses_ray, write_result
from headway.runs.context import Context, StepResult

_NEVER_CONTINUED = {"serve", "profile"}
_DIGEST = "digest"
"""A file in a run's folder, by which the same command finds it again."""

RUNS = Path("runs")
"""Folder of everything that is made, if no other is given."""


def make_context(verb: str, runs: Path, display: Display, address: str | None = None) -> Context:
    """The context of a step outside any pipeline; its folder is named after the time, and not created yet."""
    from headway.tracking import Tracking

    folder = runs / verb / time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
    return Context(verb, verb, runs, folder, Tracking.at(runs), display, address)


def run_step(verb: str, config: Config, context: Context) -> StepResult:
    """Run a single step: in the folder of an earlier run of the same that was interrupted, or in a new one.

    Two runs are the same if a pipeline would find the result of one for the other: the settings that its
    result depends on are equal, and so is the content of what it reads. One that is done is not run again in
    a pipeline; here it is, in a new folder.

    Raises:
        ConfigError: a setting is not allowed, or another process is at work on the same.
        KeyboardInterrupt: with a note on how to continue.
    """
    if verb in _NEVER_CONTINUED:
        return _run(verb, config, context)
    inputs = Inputs(context.root, context.tracking)
    with inputs.remembered():
        digest = step_digest(verb, config, inputs)
        folder = _unfinished(context.folder.parent, digest)
        if folder is not None:
            context = replace(context, folder=folder)
            context.display.step(verb, f"continues {folder}; delete it to start from scratch")
        try:
            return _run(verb, config, context, digest)
        except KeyboardInterrupt as interrupt:
            interrupt.add_note(f"the same call continues in {context.folder}")
            raise


def _unfinished(runs: Path, digest: str) -> Path | None:
    """The folder of the newest run that is the same and has no result; None if there is none."""
    for path in sorted(runs.glob(f"*/{_DIGEST}"), reverse=True):
        if not (path.parent / RESULT).exists() and path.read_text(encoding="utf-8") == digest:
            return path.parent
    return None


def _run(verb: str, config: Config, context: Context, digest: str | None = None) -> StepResult:
    """Run a step in its folder; with a digest, another run can continue it."""
    from headway.cluster import connect
    from headway.engine.checkpoint.storage import Folder
    from headway.runs.lease import Lease
    from headway.runs.lineage.provenance import git_facts

    git_facts()  # asked before Ray is connected
    if verb != "profile" and uses_ray(config):
        connect.warm_up(context.address, verb)
    begun = context.folder / _DIGEST
    is_new = not begun.exists()
    try:
        with (
            failure_kept(context.folder),
            Lease(Folder(context.folder), tell=context.display.line).held(),
        ):
            if digest is not None:
                write_atomically(begun, digest)
            result = step_function(verb)(config, context)
            if digest is not None:
                write_result(context.folder, result)
    except BaseException as error:
        if is_new and isinstance(error, ConfigError):
            begun.unlink(missing_ok=True)  # what is refused leaves no trace
        _remove_if_empty(context.folder)
        raise
    context.display.step(context.step, result.headline)
    return result


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
