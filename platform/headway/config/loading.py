"""Reads YAML files and `--set` overrides into typed settings."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from headway.config.base import Config, ConfigError
from headway.config.mistakes import describe_mistakes, suggest
from headway.config.pipeline import STEP_CONFIGS, PipelineConfig

C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """Reads `4e-3` as a number, as YAML 1.2 and JSON do, not YAML 1.1; refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`, of which the last of equal keys would win without a word."""
        found = set()
        for key, _ in node.value:
            if key.value in found and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            found.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: it is not YAML; the message names the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"{where}{line}: not valid YAML: {problem}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not text, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, found {_kind(value)}")
    return value


def apply_overrides(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of `settings` with each `a.b=value` set at its dotted path; values are read as YAML.

    Raises:
        ConfigError: an override without `=`, or a path through something that is not a mapping.
    """
    result = _copy(settings)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {override!r}: write it as path.to.setting=value")
        set_path(result, path.strip(), parse_yaml(text, f"--set {path}"))
    return result


def set_path(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set a value at a dotted path, in place, making mappings on the way."""
    *parents, last = path.split(".")
    node = settings
    for parent in parents:
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{path}: {parent!r} is {_kind(child)}, not a group of settings")
        node = child
    node[last] = value


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value


def validate(config_class: type[C], settings: dict[str, Any], where: str = "") -> C:
    """Settings as an object of their class.

    Args:
        config_class: the class that describes them.
        settings: as written.
        where: dotted path of the settings, for messages.

    Raises:
        ConfigError: one line for each mistake, with the field, its value and what is allowed.
    """
    try:
        config = config_class.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(describe_mistakes(error, config_class, where)) from error
    for field, nested_class, nested in config.nested_settings():
        validate(nested_class, nested, f"{where}.{field}" if where else field)
    return config


def load_config(config_class: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """A step's settings from a YAML file and overrides.

    Raises:
        ConfigError: there is a mistake in them, or the file is a whole pipeline.
    """
    settings = read_yaml(path)
    if isinstance(settings.get("steps"), dict):
        raise ConfigError(
            f"{path}: this is a pipeline, not the settings of one step; use `headway run {path}`"
        )
    return validate(config_class, apply_overrides(settings, overrides))


def load_pipeline(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """A pipeline from a YAML file; an override's path begins with a step's name: `pretrain.steps=10`.

    Raises:
        ConfigError: a mistake anywhere in the file, its steps or the overrides.
    """
    settings = read_yaml(path)
    steps = settings.get("steps")
    overridden = apply_overrides(steps if isinstance(steps, dict) else {}, overrides)
    for name in overridden:
        if isinstance(steps, dict) and name not in steps:
            raise ConfigError(f"--set {name}: no step has that name{suggest(name, steps)}")
    if isinstance(steps, dict):
        settings["steps"] = overridden
    return check_pipeline(validate(PipelineConfig, settings))


def check_pipeline(pipeline: PipelineConfig) -> PipelineConfig:
    """The same pipeline, after checking the settings of every step."""
    for name, settings in pipeline.steps.items():
        step_config(name, settings)
    return pipeline


def step_config(name: str, settings: dict[str, Any]) -> Config:
    """The typed settings of one step of a pipeline."""
    verb = settings.get("use")
    if verb not in STEP_CONFIGS:
        allowed = ", ".join(STEP_CONFIGS)
        raise ConfigError(f"{name}.use: {verb!r} is not a step; allowed: {allowed}")
    body = {key: value for key, value in settings.items() if key != "use"}
    return validate(STEP_CONFIGS[verb], body, name)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")
