"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FILE = click.argument("file", type=click.Path(path_type=Path))
SET = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override a setting; may be repeated."
)
RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Folder for everything that is made.",
)
ADDRESS = click.option("--address", help="Ray cluster; default: RAY_ADDRESS, or a local one.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON, for scripts.")
QUIET = click.option("--quiet", is_flag=True, help="Show no progress.")


def file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The arguments of a command that does what a YAML file says."""
    for option in (QUIET, ADDRESS, RUNS, SET, FILE):
        function = option(function)
    return function
