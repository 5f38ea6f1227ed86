"""The last words of a pipeline: what came out, where it lies, and how to look further."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headway.display import Display, duration
from headway.tracking import tracking_uri


def write_closing(summary: dict[str, Any], runs: Path, pipeline: Path, display: Display) -> None:
    """A table of the steps, the paths of what was made, and commands that go on from there."""
    seconds = summary["wall_seconds"]
    rows = [
        (name, "cached" if name in summary["cached"] else duration(took), summary["outputs"][name])
        for name, took in seconds.items()
    ]
    rows.append(("all", duration(sum(seconds.values())), str(runs / summary["name"] / "summary.json")))
    display.line("")
    display.table(f"{summary['name']}: done", ["step", "took", "made"], rows)
    display.line("Look further:", style="bold")
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


def curl_command(url: str) -> str:
    """How to ask the server from a shell."""
    return (
        f"curl -s {url}/v1/classify -H 'content-type: application/json' "
        f"""-d '{{"input": "{_EXAMPLE}"}}'"""
    )


def example_command(url: str, abilities: Sequence[str]) -> str:
    """How to ask a server for what its model does best."""
    if "classify" in abilities:
        return curl_command(url)
    return curl_command(url).replace("/v1/classify", "/v1/embeddings")


def wait_for_interrupt() -> None:
    """Sleep until Ctrl-C, or until the process is told to end (SIGTERM)."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        ended.wait()
    except (KeyboardInterrupt, SystemExit):
        return
    finally:
        signal.signal(signal.SIGTERM, before)
