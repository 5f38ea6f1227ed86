"""Resolves what a user calls a model to a folder of transformers files."""

from __future__ import annotations

from pathlib import Path

from headway.config.base import ConfigError
from headway.tracking import Tracking


def model_folder(reference: str, tracking: Tracking) -> Path:
    """The folder that a path or `models:/name@alias` stands for.

    Raises:
        ConfigError: there is no such model.
    """
    if reference.startswith("models:/"):
        return tracking.download_weights(reference)
    folder = Path(reference).expanduser()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model: {reference!r} is not a folder with a transformers model (no config.json)")
    return folder
