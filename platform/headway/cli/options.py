"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

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
