"""What can be known to be wrong with the inputs of a pipeline's steps before the first of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from headway.config.base import Config, ConfigError
from headway.config.loading import step_config, validate
from headway.config.mistakes import suggest
from headway.config.pipeline import PipelineConfig
from headway.config.sources import SourceConfig
from headway.config.sweep import SweepConfig
from headway.config.tasks import TaskConfig
from headway.data.sources.rows import columns_of
from headway.sweeps.checks import check_sweep

_MODEL = "a folder with a transformers model (no config.json)"
_NEEDED_FILES = {
    "model": ("config.json", _MODEL),
    "encoder": ("config.json", _MODEL),
    "teacher": ("config.json", _MODEL),
    "beside": ("config.json", _MODEL),
    "among": ("config.json", _MODEL),
    "corpus": ("corpus.json", "a prepared corpus (no corpus.json)"),
    "task": ("task.json", "a prepared task (no task.json)"),
    "tokenizer": (".", "a folder"),
}
"""Settings that name a folder: the file that must be in it, and what the folder is then."""


def check_inputs(config: PipelineConfig) -> None:
    """Refuse folders that are not there, columns that a source lacks, and sweeps that no trial could run in.

    Raises:
        ConfigError: one line for each mistake.
    """
    mistakes = [
        mistake
        for name, settings in config.steps.items()
        for mistake in _mistakes(step_config(name, settings), name)
    ]
    if mistakes:
        raise ConfigError("\n".join(dict.fromkeys(mistakes)))


def _mistakes(config: Config, where: str) -> Iterator[str]:
    if isinstance(config, SourceConfig):
        yield from _missing_columns(config, where)
    if isinstance(config, SweepConfig):
        try:
            check_sweep(config)
        except ConfigError as error:
            yield f"{where}.{error}"
    for field in type(config).model_fields:
        yield from _mistakes_in(field, getattr(config, field), f"{where}.{field}")
    for field, nested_class, settings in config.nested_settings():
        nested = validate(nested_class, settings, f"{where}.{field}")
        for name in getattr(config, field):
            yield from _mistakes_in(name, getattr(nested, name), f"{where}.{field}.{name}")


def _mistakes_in(field: str, value: object, path: str) -> Iterator[str]:
    if isinstance(value, Config):
        yield from _mistakes(value, path)
    elif isinstance(value, dict):
        for name, item in value.items():
            if isinstance(item, Config):
                yield from _mistakes(item, f"{path}.{name}")
            elif field in ("beside", "among"):
                yield from _missing_folder(field, item, f"{path}.{name}")
    elif field in _NEEDED_FILES and isinstance(value, str | Path):
        yield from _missing_folder(field, str(value), path)


def _missing_folder(field: str, value: str, path: str) -> Iterator[str]:
    file, kind = _NEEDED_FILES[field]
    # What an earlier step makes, or registers, is not there yet.
    if not value.startswith(("${", "models:/")) and not (Path(value).expanduser() / file).exists():
        yield f"{path}: {value!r} is not {kind}"


def _missing_columns(config: SourceConfig, where: str) -> Iterator[str]:
    named = {name: getattr(config, name) for name in type(config).model_fields if name.endswith("_column")}
    for setting, place in _sources(config):
        try:
            columns = columns_of(place)
        except ConfigError as error:
            yield f"{where}.{setting}: {error}"
            continue
        for name, column in named.items():
            if columns is not None and column is not None and column not in columns:
                said = suggest(column, columns)
                yield f"{where}.{name}: {place.source!r} has no column {column!r}{said}"


def _sources(config: SourceConfig) -> Iterator[tuple[str, SourceConfig]]:
    yield "source", config
    if isinstance(config, TaskConfig):
        for side in ("validation", "test"):
            source = getattr(config, f"{side}_source")
            if source is not None:
                split = getattr(config, f"{side}_split") or config.split
                yield f"{side}_source", config.model_copy(update={"source": source, "split": split})
