"""`headway serve`, `predict`, `load-test` and `key`: commands for a trained model."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from headway.cli.options import ADDRESS, RUNS, SET
from headway.config.base import ConfigError

if TYPE_CHECKING:
    from headway.steps.predict import PredictRequest


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL | NAME=MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=int)
@click.option("--replicas", default="1,4", show_default=True, help="Minimum and maximum number of replicas.")
@click.option("--api-keys-file", type=click.Path(path_type=Path), help="File with digests of the API keys.")
@SET
@RUNS
@ADDRESS
def serve(
    models: tuple[str, ...],
    host: str,
    port: int,
    replicas: str,
    api_keys_file: Path | None,
    overrides: tuple[str, ...],
    runs: Path,
    address: str | None,
) -> None:
    """Serve MODEL, an encoder's folder or models:/name@alias, until Ctrl-C or SIGTERM.

    With several models, give each a name. A request chooses one by `model`, and each scales independently:
    `headway serve news=models:/news@champion minilm=./minilm --set models.minilm.replicas=[0,2]`.
    """
    from headway.api.step import make_context, run_step
    from headway.config.loading import apply_overrides, validate
    from headway.config.serve import ServeConfig
    from headway.display import Display
    from headway.pipeline.summary import example_command, serve_until, told_to_end

    bounds = [int(part) if part.strip().isdigit() else part for part in replicas.split(",")]
    settings = {
        **_named(models),
        "host": host,
        "port": port,
        "replicas": bounds * (3 - len(bounds)),
        "api_keys_file": api_keys_file,
    }
    config = validate(ServeConfig, apply_overrides(settings, overrides))
    display = Display()
    with told_to_end() as ended:
        result = run_step("serve", config, make_context("serve", runs, display, address))
        display.line(example_command(result.output, result.summary["abilities"]))
        serve_until(ended, display)


def _named(models: Sequence[str]) -> dict[str, Any]:
    """The setting `model`, or `models` if the models have names."""
    parts = [model.partition("=") for model in models]
    named = [bool(equals) and "/" not in name for name, equals, _ in parts]
    if not any(named):
        if len(models) > 1:
            raise ConfigError("serve: several models need names; write NAME=MODEL")
        return {"model": models[0]}
    if not all(named):
        raise ConfigError(f"serve: {models[named.index(False)]!r} needs a name too; write NAME=MODEL")
    by_name: dict[str, Any] = {}
    for name, _, model in parts:
        if name in by_name:
            raise ConfigError(f"serve: the name {name!r} is given twice")
        by_name[name] = {"model": model}
    return {"models": by_name}


@click.command()
@click.argument("name")
def key(name: str) -> None:
    """Make an API key for NAME; prints the key to stderr, and the line for --api-keys-file to stdout."""
    secret = secrets.token_urlsafe(32)
    click.echo(f"key, shown only once: {secret}", err=True)
    click.echo(f"{hashlib.sha256(secret.encode()).hexdigest()} {name}")


@click.command()
@click.argument("url")
@click.option(
    "--file", "file", required=True, type=click.Path(path_type=Path), help="File with one text per line."
)
@click.option("--clients", default=64, show_default=True, type=click.IntRange(1, 4096))
@click.option("--requests", default=2000, show_default=True, type=click.IntRange(1))
@click.option(
    "--texts", default=1, show_default=True, type=click.IntRange(1, 256), help="Texts in each request."
)
@click.option("--model", help="Which of the server's models; needed only if there are several.")
@click.option("--key", envvar="HEADWAY_KEY", help="API key; default: HEADWAY_KEY.")
def load_test(
    url: str, file: Path, clients: int, requests: int, texts: int, model: str | None, key: str | None
) -> None:
    """Send requests to URL (…/v1/embeddings or …/v1/classify) and measure the answers; prints JSON."""
    import asyncio

    from headway.serving.load_test import apply_load, bodies

    lines = _lines_of(file)
    if not lines:
        raise ConfigError(f"--file: {str(file)!r} holds no text")
    headers = {"authorization": f"Bearer {key}"} if key else None
    work = bodies(lines, requests, texts, model)
    result = asyncio.run(apply_load(url, work, clients, headers=headers))
    click.echo(json.dumps(result.summary() | {"statuses": dict(result.statuses)}))
    if result.failed:
        sys.exit(1)


@click.command()
@click.argument("texts", nargs=-1)
@click.option("--model", required=True, help="An encoder's folder or models:/name@alias.")
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path),
    help="One text per line; - reads standard input.",
)
@click.option(
    "--input",
    "source",
    help=".csv, .jsonl, .json or .parquet: a file, a folder, a pattern, or a URI such as s3://…",
)
@click.option("--output", help=".csv, .jsonl or .parquet to write, or FOLDER/ for .parquet in parts.")
@click.option("--column", default="text", show_default=True, help="Column of --input with the texts.")
@click.option("--question", help="What a model for question answering looks for in each text.")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Numbers of embeddings in --output.")
@click.option(
    "--on-bad-row",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="A row of --input without a text ends the run before it begins, or is left out.",
)
@RUNS
@ADDRESS
def predict(
    texts: tuple[str, ...],
    model: str,
    file: Path | None,
    source: str | None,
    output: str | None,
    column: str,
    question: str | None,
    dtype: Any,
    on_bad_row: Any,
    runs: Path,
    address: str | None,
) -> None:
    """Answer TEXTS in this process, or all rows of --input on the cluster.

    MODEL's head says what an answer is: a class, several, a number, entities, hidden words, or the answer to
    --question. TEXTS and --file print one JSON line for each text. --input and --output add the answer to
    each row, or an embedding if MODEL has no head for rows; a run that was stopped continues.
    """
    if (source is None) != (output is None) or (source is not None and (texts or file is not None)):
        raise ConfigError("predict: --input and --output go together, without TEXTS and --file")
    if source is not None and output is not None:
        from headway.steps.predict import PredictRequest

        request = PredictRequest(source, output, column, question, dtype, on_bad_row)
        _predict_file(model, request, runs, address)
        return
    if file is not None:
        texts += tuple(_lines_of(file))
    if not texts:
        raise ConfigError("predict: no text; give TEXTS, --file, or --input and --output")
    _predict_texts(model, texts, question, runs)


def _predict_texts(model: str, texts: Sequence[str], question: str | None, runs: Path) -> None:
    from headway.inference.description import describe, kind_of
    from headway.inference.predictor import Predictor
    from headway.tracking import Tracking
    from headway.tracking.references import model_folder

    folder = model_folder(model, Tracking.at(runs))
    description = describe(folder)
    kind = kind_of(description)
    if kind == "embedding":
        raise ConfigError(
            f"model: {model!r} is a {description.architecture}, an encoder without a head: it gives "
            "embeddings, which --input and --output write to a file, and no labels"
        )
    if (kind == "answers") != (question is not None):
        raise ConfigError("--question: needed by models that answer questions, and by no others")
    questions = None if question is None else [question] * len(texts)
    for text, row in zip(texts, Predictor(folder, kind).rows(texts, questions), strict=True):
        click.echo(json.dumps({"text": text, **_rounded(row)}, ensure_ascii=False))


def _rounded(value: Any) -> Any:
    """The same with four decimals, wherever in it."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(one) for key, one in value.items()}
        case list():
            return [_rounded(one) for one in value]
    return value


def _predict_file(model: str, request: PredictRequest, runs: Path, address: str | None) -> None:
    from headway.cluster import connect
    from headway.display import Display
    from headway.steps.predict import predict_file
    from headway.tracking import Tracking

    display = Display()
    done = predict_file(model, request, Tracking.at(runs), display, address)
    display.settle()
    left_out = f", {done.bad:,} bad ones left out" if done.bad else ""
    click.echo(f"{done.rows:,} rows{left_out}: {request.output}")
    connect.shut_down()


def _lines_of(file: Path) -> list[str]:
    if str(file) != "-" and not file.is_file():
        raise ConfigError(f"--file: {str(file)!r} does not exist")
    try:
        content = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"--file: {str(file)!r} is not UTF-8 text (byte {error.start})") from error
    return [line for line in content.splitlines() if line.strip()]
