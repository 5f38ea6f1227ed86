"""Runs a single step outside any pipeline, in its own folder."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path

from headway.config.base import Config, ConfigError
from headway.config.loading import validate
from headway.display import Display
from headway.runs.context import Context, StepResult


def make_context(verb: str, runs: Path, display: Display, address: str | None = None) -> Context:
    """The context of a step outside any pipeline; its folder is named after the time, and not created yet."""
    from headway.tracking import Tracking

    folder = runs / verb / time.strftime("%Y%m%d-%H%M%S")
    number = 1
    while folder.exists():
        number += 1
        folder = folder.with_name(f"{folder.name.partition('.')[0]}.{number}")
    return Context(verb, verb, runs, folder, Tracking.at(runs), display, address)


def resumed_context(verb: str, config: Config, context: Context) -> Context:
    """The context of the newest run of a step outside any pipeline with these settings.

    Operational settings may differ.

    Raises:
        ConfigError: there is none.
    """
    from headway.pipeline.digest import result_settings

    settings = result_settings(config)
    for path in sorted(context.folder.parent.glob(f"*/{verb}.json"), reverse=True):
        written = json.loads(path.read_text(encoding="utf-8"))["config"]
        with contextlib.suppress(ConfigError):  # another release wrote it
            if result_settings(validate(type(config), written)) == settings:
                return replace(context, folder=path.parent)
    raise ConfigError(f"--resume: no {verb} with these settings under {str(context.folder.parent)!r}")


def run_step(verb: str, config: Config, context: Context) -> StepResult:
    """Run a single step in the folder of its context."""
    from headway.cluster import connect
    from headway.engine.checkpoint.storage import Folder
    from headway.pipeline.run import step_function, uses_ray
    from headway.runs.lease import Lease
    from headway.runs.lineage.provenance import git_facts

    git_facts()  # asked before Ray is connected
    if verb != "profile" and uses_ray(config):
        connect.warm_up(context.address, verb)
    try:
        with Lease(Folder(context.folder), tell=context.display.line).held():
            result = step_function(verb)(config, context)
    except BaseException:
        _remove_if_empty(context.folder)
        raise
    context.display.step(context.step, result.headline)
    return result


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
