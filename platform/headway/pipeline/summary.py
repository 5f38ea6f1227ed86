"""What is shown at the end of a pipeline: results, where they are, and commands to look further."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headway.display import Display, duration
from headway.tracking import tracking_uri


def write_closing(summary: dict[str, Any], runs: Path, pipeline: Path, display: Display) -> None:
    """Show a table of the steps with the paths of what they made, and commands that use it."""
    seconds = summary["wall_seconds"]
    rows = [
        (name, "cached" if name in summary["cached"] else duration(took), summary["outputs"][name])
        for name, took in seconds.items()
    ]
    rows.append(("all", duration(sum(seconds.values())), str(runs / summary["name"] / "summary.json")))
    display.line("")
    display.table(f"{summary['name']}: done", ["step", "took", "made"], rows)
    display.line("Next:", style="bold")
    for command in _commands(summary, runs, pipeline):
        display.line(f"  {command}")


def _commands(summary: dict[str, Any], runs: Path, pipeline: Path) -> list[str]:
    uri = tracking_uri(runs)
    commands = []
    if uri.startswith("sqlite:"):
        commands.append(f"mlflow ui --workers 1 --backend-store-uri {uri}")
    option = "" if runs == Path("runs") else f" --runs {runs}"
    models = [output for output in summary["outputs"].values() if output.startswith("models:/")]
    if models:
        commands.append(f"headway predict --model {models[-1]}{option} {_EXAMPLE!r}")
        commands.append(f"headway serve {models[-1]}{option}")
    servers = [output for output in summary["outputs"].values() if output.startswith("http")]
    if servers:
        commands.append(f"headway run {pipeline}{option} --keep-serving    # then, elsewhere:")
        commands.append(curl_command(servers[-1]))
    return commands


_EXAMPLE = "The striker scored twice before half-time."


def curl_command(url: str, operation: str = "classify", model: str | None = None) -> str:
    """The command that sends a request from a shell."""
    body = json.dumps(({"model": model} if model else {}) | {"input": _EXAMPLE})
    return f"curl -s {url}/v1/{operation} -H 'content-type: application/json' -d '{body}'"


def example_command(url: str, abilities: Mapping[str, Sequence[str]]) -> str:
    """The command that sends a request for what the first model is made for."""
    name, able = next(iter(abilities.items()))
    operation = "classify" if "classify" in able else "embeddings"
    return curl_command(url, operation, name if len(abilities) > 1 else None)


@contextlib.contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """An event that is set on SIGTERM and on the first Ctrl-C; entered before anything is started.

    Clients are answered a moment before the command knows that the server is up. If it is told to end in
    between, it must still answer what is in flight. The second Ctrl-C interrupts as usual.
    """
    ended = threading.Event()

    def on_interrupt(*_: Any) -> None:
        if ended.is_set():
            raise KeyboardInterrupt
        ended.set()

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: ended.set()),
        signal.SIGINT: signal.signal(signal.SIGINT, on_interrupt),
    }
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve_until(ended: threading.Event, display: Display) -> None:
    """Wait for the event, then answer what is in flight and stop serving."""
    from headway.cluster import connect
    from headway.serving.deploy import undeploy

    display.line("Serving until Ctrl-C.")
    ended.wait()
    undeploy()
    connect.shut_down()
    display.line("Stopped.")
