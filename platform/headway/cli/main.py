"""The command `headway`: one thin function for each verb.

Exit codes: 0 success, 1 a step failed, 2 bad configuration, 3 a quality gate failed.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from headway.cli.cluster_launcher import down, up
from headway.cli.doctor import doctor
from headway.cli.jobs import cancel, logs, status, submit
from headway.cli.options import JSON, file_options
from headway.cli.serving import key, load_test, predict, serve
from headway.cluster import secrets
from headway.config.base import ConfigError
from headway.config.loading import load_config, load_pipeline
from headway.config.pipeline import STEP_CONFIGS
from headway.redaction import redacted

_CONTINUED = ("run", "pretrain", "finetune", "sweep", "evaluate", "quantize", "predict")
"""The commands that begin where an interrupted one of the same settings ended."""


class CommandLine(click.Group):
    """A group of commands whose errors end in one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise  # click reports these itself
        except ConfigError as error:
            click.echo("\n".join(f"error: {line}" for line in str(error).splitlines()), err=True)
            _leave(2)
        except KeyboardInterrupt:
            continues = ctx.invoked_subcommand in _CONTINUED
            hint = "; run the same command again to continue" if continues else ""
            click.echo(f"interrupted{hint}", err=True)
            _leave(130)
        except Exception as error:
            if os.environ.get("HEADWAY_DEBUG"):
                click.echo(redacted(traceback.format_exc()), err=True, nl=False)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            click.echo(f"failed: {type(error).__name__}: {redacted(lines[-1])}", err=True)
            for note in getattr(error, "__notes__", ["set HEADWAY_DEBUG=1 to see the traceback"]):
                click.echo(note, err=True)
            _leave(1)
        finally:
            # Otherwise Python spends seconds at exit on collecting all that torch and MLflow have loaded.
            gc.freeze()


def _leave(code: int) -> None:
    """Exit; a local Ray cluster is shut down first, which keeps it silent."""
    from headway.cluster import connect

    connect.disconnect()
    sys.exit(code)


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headway")
def main() -> None:
    """From raw text to a served encoder, on Ray."""
    secrets.take_from_job()
    # transformers shows a progress bar for each model it writes, which would break up Headway's own output.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@click.command()
@file_options
@click.option("--keep-serving", is_flag=True, help="Keep serving until Ctrl-C.")
@JSON
def run(
    file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    address: str | None,
    quiet: bool,
    keep_serving: bool,
    as_json: bool,
) -> None:
    """Run the pipeline in FILE; steps that are already done are not run again."""
    pipeline = load_pipeline(file, overrides)
    from headway.cluster import connect
    from headway.display import Display
    from headway.pipeline.run import run_pipeline
    from headway.pipeline.summary import serve_until, told_to_end, write_closing

    display = Display(quiet or as_json)
    summary = run_pipeline(pipeline, runs, display, address)
    write_closing(summary, runs, file, display)
    if as_json:
        click.echo(json.dumps(summary))
    if keep_serving and any(settings["use"] == "serve" for settings in pipeline.steps.values()):
        with told_to_end() as ended:
            serve_until(ended, display)
    connect.shut_down()


@click.command()
@file_options
def pretrain(**options: Any) -> None:
    """Pretrain an encoder as FILE says; prints the model's folder."""
    _run_step("pretrain", **options)


@click.command()
@file_options
def finetune(**options: Any) -> None:
    """Fine-tune an encoder as FILE says; prints the model's folder."""
    _run_step("finetune", **options)


@click.command()
@file_options
def sweep(**options: Any) -> None:
    """Search settings as FILE says; prints the best model's folder."""
    _run_step("sweep", **options)


@click.command()
@file_options
def evaluate(**options: Any) -> None:
    """Score a fine-tuned model on held-out texts as FILE says; prints the model's folder."""
    _run_step("evaluate", **options)


@click.command()
@file_options
def prune(**options: Any) -> None:
    """Cut an encoder down to its important parts as FILE says; prints the model's folder."""
    _run_step("prune", **options)


@click.command()
@file_options
def quantize(**options: Any) -> None:
    """Quantise an encoder as FILE says; prints the model's folder."""
    _run_step("quantize", **options)


@click.command()
@file_options
def static(**options: Any) -> None:
    """Make a table of token vectors out of an encoder as FILE says; prints the model's folder."""
    _run_step("static", **options)


@click.command()
@file_options
def export(**options: Any) -> None:
    """Export a model to ONNX or OpenVINO as FILE says; prints the model's folder."""
    _run_step("export", **options)


@click.command()
@file_options
def profile(**options: Any) -> None:
    """Profile a few steps of the pretraining in FILE; prints the path of the trace."""
    _run_step("profile", settings_of="pretrain", **options)


def _run_step(
    verb: str,
    file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    address: str | None,
    quiet: bool,
    settings_of: str | None = None,
) -> None:
    """Run one step with the settings in a file, which are those of the step `settings_of` if it is given."""
    config = load_config(STEP_CONFIGS[settings_of or verb], file, overrides)
    from headway.api.step import make_context, run_step
    from headway.cluster import connect
    from headway.display import Display

    context = make_context(verb, runs, Display(quiet), address)
    click.echo(run_step(verb, config, context).output)
    connect.shut_down()


for command in (
    *(run, pretrain, finetune, sweep, evaluate, prune, quantize, static, export, profile),
    *(serve, predict, load_test, key),
    *(up, down, submit, status, logs, cancel),
    doctor,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
