"""The command `headway`: one thin function a verb.

Exit codes: 0 good, 1 a step failed, 2 bad configuration, 3 a quality gate failed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from headway.cli_cluster import add_cluster_commands
from headway.config import STEP_CONFIGS, ConfigError
from headway.config_files import load_config, load_pipeline

_SET = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a setting; may be repeated."
)
_RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder for everything that is made.",
)
_ADDRESS = click.option("--address", help="Ray cluster; default: RAY_ADDRESS, or a local one.")
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
            click.echo("interrupted; the same command goes on from here", err=True)
            _leave(130)
        except Exception as error:
            if os.environ.get("HEADWAY_DEBUG"):
                traceback.print_exc()
            lines = str(error).strip().splitlines() or [type(error).__name__]
            click.echo(f"failed: {type(error).__name__}: {lines[-1]}", err=True)
            click.echo("set HEADWAY_DEBUG=1 to see where", err=True)
            _leave(1)

    return wrapped


def _leave(code: int) -> None:
    """Exit; a local Ray cluster ends first, without a word of its own."""
    from headway import cluster

    cluster.disconnect()
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="headway")
def main() -> None:
    """From raw text to a served encoder, on Ray."""
    # A bar of transformers' for each model it writes would land between the lines of Headway's own progress.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@main.command()
@_FILE
@_SET
@_RUNS
@_ADDRESS
@_QUIET
@click.option("--keep-serving", is_flag=True, help="Leave what was served up, until Ctrl-C.")
@_exit_codes
def run(
    file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool, keep_serving: bool
) -> None:
    """Run a pipeline FILE; steps that are done already are not run again."""
    pipeline = load_pipeline(file, overrides)
    from headway import cluster
    from headway.closing import wait_for_interrupt, write_closing
    from headway.display import Display
    from headway.pipeline import run_pipeline

    display = Display(quiet)
    summary = run_pipeline(pipeline, runs, display, address)
    write_closing(summary, runs, file, display)
    if keep_serving and any(settings["use"] == "serve" for settings in pipeline.steps.values()):
        display.line("Serving until Ctrl-C.")
        wait_for_interrupt()
    cluster.shut_down()


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
    from headway import cluster
    from headway.api import make_context, resumed_context, run_step
    from headway.display import Display

    context = make_context(verb, runs, Display(quiet), address)
    if resume:
        context = resumed_context(verb, config, context)
    click.echo(run_step(verb, config, context).output)
    cluster.shut_down()


def _add_verb(verb: str, text: str) -> None:
    @main.command(verb, help=text)
    @_FILE
    @_SET
    @_RUNS
    @_ADDRESS
    @_QUIET
    @_exit_codes
    def command(file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool) -> None:
        _run_verb(verb, file, overrides, runs, address, quiet)


_add_verb("pretrain", "Pretrain an encoder as FILE says; prints the folder of the model.")
_add_verb("finetune", "Fine-tune an encoder as FILE says; prints the folder of the model.")
_add_verb("evaluate", "Score a classifier on held-out texts as FILE says.")
_add_verb("profile", "Profile a few steps of the pretraining in FILE; prints the trace's path.")


@main.command()
@_FILE
@_SET
@_RUNS
@_ADDRESS
@_QUIET
@click.option("--resume", is_flag=True, help="Go on with the newest sweep of the same settings.")
@_exit_codes
def sweep(
    file: Path, overrides: tuple[str, ...], runs: Path, address: str | None, quiet: bool, resume: bool
) -> None:
    """Search settings as FILE says; prints the folder of the best model."""
    _run_verb("sweep", file, overrides, runs, address, quiet, resume)


@main.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=int)
@click.option("--replicas", default="1,4", show_default=True, help="Least and most replicas.")
@click.option("--keys", type=click.Path(path_type=Path), help="Digests of the keys that may ask.")
@_SET
@_RUNS
@_ADDRESS
@_exit_codes
def serve(
    model: str,
    host: str,
    port: int,
    replicas: str,
    keys: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
    address: str | None,
) -> None:
    """Serve MODEL, an encoder's folder or models:/name@alias, until Ctrl-C or SIGTERM."""
    from headway import cluster
    from headway.api import make_context, run_step
    from headway.closing import example_command, wait_for_interrupt
    from headway.config import ServeConfig
    from headway.config_files import apply_overrides, validate
    from headway.display import Display
    from headway.serving.deploy import undeploy

    bounds = [int(part) if part.strip().isdigit() else part for part in replicas.split(",")]
    settings = {
        "model": model,
        "host": host,
        "port": port,
        "replicas": bounds * (3 - len(bounds)),
        "keys": keys,
    }
    config = validate(ServeConfig, apply_overrides(settings, overrides))
    display = Display()
    result = run_step("serve", config, make_context("serve", runs, display, address))
    display.line(example_command(result.output, result.summary["abilities"]))
    display.line("Serving until Ctrl-C.")
    wait_for_interrupt()
    undeploy()
    cluster.shut_down()


@main.command("key")
@click.argument("name")
@_exit_codes
def make_key(name: str) -> None:
    """Make a bearer key for NAME: the key itself on stderr, the line for the file of --keys on stdout."""
    key = secrets.token_urlsafe(32)
    click.echo(f"key, shown only now: {key}", err=True)
    click.echo(f"{hashlib.sha256(key.encode()).hexdigest()} {name}")


@main.command("load-test")
@click.argument("url")
@click.option("--file", "file", required=True, type=click.Path(path_type=Path), help="A text a line.")
@click.option("--clients", default=64, show_default=True, type=click.IntRange(1, 4096))
@click.option("--requests", default=2000, show_default=True, type=click.IntRange(1))
@click.option("--texts", default=1, show_default=True, type=click.IntRange(1, 256), help="In each request.")
@click.option("--key", envvar="HEADWAY_KEY", help="Bearer key; default: HEADWAY_KEY.")
@_exit_codes
def load_test(url: str, file: Path, clients: int, requests: int, texts: int, key: str | None) -> None:
    """Keep the operation at URL busy (…/v1/embeddings or …/v1/classify) and measure it; prints JSON."""
    import asyncio

    from headway.serving.load import apply_load, bodies

    lines = _lines_of(file)
    if not lines:
        raise ConfigError(f"--file: {str(file)!r} holds no text")
    headers = {"authorization": f"Bearer {key}"} if key else None
    work = bodies(lines, requests, texts, None)
    result = asyncio.run(apply_load(url, work, clients, headers=headers))
    click.echo(json.dumps(result.summary() | {"statuses": dict(result.statuses)}))
    if result.failed:
        _leave(1)


@main.command()
@click.argument("texts", nargs=-1)
@click.option("--model", required=True, help="A classifier's folder or models:/name@alias.")
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help="A text a line; - reads standard input."
)
@_RUNS
@_exit_codes
def predict(texts: tuple[str, ...], model: str, file: Path | None, runs: Path) -> None:
    """Classify TEXTS in this process; prints a JSON line for each."""
    if file is not None:
        texts += tuple(_lines_of(file))
    if not texts:
        raise ConfigError("predict: no text; give texts, or --file")
    from headway.serving.classifier import Classifier
    from headway.steps.models import model_folder
    from headway.tracking import Tracking

    classifier = Classifier(model_folder(model, Tracking.at(runs)))
    for text, answer in zip(texts, classifier.predict(texts), strict=True):
        row = {"text": text, "label": answer.label, "score": round(answer.score, 4)}
        click.echo(json.dumps(row, ensure_ascii=False))


def _lines_of(file: Path) -> list[str]:
    if str(file) != "-" and not file.is_file():
        raise ConfigError(f"--file: {str(file)!r} does not exist")
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--file: {str(file)!r} is not UTF-8 text (byte {error.start})") from error
    return [line for line in content.splitlines() if line.strip()]


@main.command()
@_RUNS
@_exit_codes
def doctor(runs: Path) -> None:
    """What this machine has, and what would go wrong."""
    from headway.display import Display
    from headway.doctor import examine

    findings = examine(runs)
    Display().table("This machine", ["", "", ""], [(f.subject, f.fact, f.verdict) for f in findings])
    if any(finding.is_problem for finding in findings):
        _leave(1)


add_cluster_commands(main, _exit_codes)

if __name__ == "__main__":
    main()
