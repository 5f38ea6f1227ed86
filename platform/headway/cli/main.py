"""The command `headway`: one thin function a verb.

Exit codes: 0 good, 1 a step failed, 2 bad configuration, 3 a quality gate failed.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from headway.cli.cluster import add_cluster_commands
from headway.cli.options import ADDRESS, RUNS, SET
from headway.cli.serving import add_serving_commands
from headway.config.base import ConfigError
from headway.config.loading import load_config, load_pipeline
from headway.config.pipeline import STEP_CONFIGS

_QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")
_FILE = click.argument("file", type=click.Path(path_type=Path))


def _exit_codes(function: Callable[..., None]) -> Callable[..., None]:
    """Turn what went wrong into one clear line and an exit code."""

    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            function(*args, **kwargs)
        except ConfigError as error:
            click.echo("\n".join(f"error: {line}" for line in str(error).splitlines()), err=True)
            _leave(2)
        except KeyboardInterrupt:
            click.echo("interrupted; run the same command again to continue", err=True)
            _leave(130)
        except Exception as error:
            if os.environ.get("HEADWAY_DEBUG"):
                traceback.print_exc()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            click.echo(f"failed: {type(error).__name__}: {lines[-1]}", err=True)
            click.echo("set HEADWAY_DEBUG=1 to see where", err=True)
            _leave(1)
        finally:
            # Or Python looks through all that torch and MLflow have loaded, for seconds, before it ends.
            gc.freeze()

    return wrapped


def _leave(code: int) -> None:
    """Exit; a local Ray cluster ends first, without a word of its own."""
    from headway.cluster import connect

    connect.disconnect()
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headway")
def main() -> None:
    """From raw text to a served encoder, on Ray."""
    # A bar of transformers' for each model it writes would land between the lines of Headway's own progress.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@main.command()
@_FILE
@SET
@RUNS
@ADDRESS
@_QUIET
@click.option("--keep-serving", is_flag=True, help="Leave what was served up, until Ctrl-C.")
@_exit_codes
def run(
    file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool, keep_serving: bool
) -> None:
    """Run a pipeline FILE; steps that are done already are not run again."""
    pipeline = load_pipeline(file, overrides)
    from headway.cluster import connect
    from headway.display import Display
    from headway.pipeline.run import run_pipeline
    from headway.pipeline.summary import serve_until, told_to_end, write_closing

    display = Display(quiet)
    summary = run_pipeline(pipeline, runs, display, address)
    write_closing(summary, runs, file, display)
    if keep_serving and any(settings["use"] == "serve" for settings in pipeline.steps.values()):
        with told_to_end() as ended:
            serve_until(ended, display)
    connect.shut_down()


_SETTINGS_OF = {"profile": "pretrain"}
"""Verbs that read another step's settings."""


def _run_verb(
    verb: str,
    file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    address: str | None,
    quiet: bool,
    resume: bool = False,
) -> None:
    config = load_config(STEP_CONFIGS[_SETTINGS_OF.get(verb, verb)], file, overrides)
    from headway.api.step import make_context, resumed_context, run_step
    from headway.cluster import connect
    from headway.display import Display

    context = make_context(verb, runs, Display(quiet), address)
    if resume:
        context = resumed_context(verb, config, context)
    click.echo(run_step(verb, config, context).output)
    connect.shut_down()


def _add_verb(verb: str, text: str) -> None:
    @main.command(verb, help=text)
    @_FILE
    @SET
    @RUNS
    @ADDRESS
    @_QUIET
    @_exit_codes
    def command(file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool) -> None:
        _run_verb(verb, file, overrides, runs, address, quiet)


_add_verb("pretrain", "Pretrain an encoder as FILE says; prints the folder of the model.")
_add_verb("finetune", "Fine-tune an encoder as FILE says; prints the folder of the model.")
_add_verb("evaluate", "Score a classifier on held-out texts as FILE says.")
_add_verb("compress", "Quantise an encoder as FILE says; prints the folder of the model.")
_add_verb("profile", "Profile a few steps of the pretraining in FILE; prints the trace's path.")


@main.command()
@_FILE
@SET
@RUNS
@ADDRESS
@_QUIET
@click.option("--resume", is_flag=True, help="Go on with the newest sweep of the same settings.")
@_exit_codes
def sweep(
    file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool, resume: bool
) -> None:
    """Search settings as FILE says; prints the folder of the best model."""
    _run_verb("sweep", file, overrides, runs, address, quiet, resume)


@main.command()
@RUNS
@_exit_codes
def doctor(runs: Path) -> None:
    """What this machine has, and what would go wrong."""
    from headway.cli.doctor import examine
    from headway.display import Display

    findings = examine(runs)
    Display().table("This machine", ["", "", ""], [(f.subject, f.fact, f.verdict) for f in findings])
    if any(finding.is_problem for finding in findings):
        _leave(1)


add_serving_commands(main, _exit_codes)
add_cluster_commands(main, _exit_codes)

if __name__ == "__main__":
    main()
