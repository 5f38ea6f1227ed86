"""YAML files and `--set` overrides into typed settings; every mistake in one clear line."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from headway.config.base import Config, ConfigError
from headway.config.pipeline import STEP_CONFIGS, PipelineConfig

C = TypeVar("C", bound=Config)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `4e-3` as text; users mean a number, as in YAML 1.2 and JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: it is not YAML; the line names the place.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise ConfigError(f"{where}{place}: not valid YAML: {problem}") from error


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
    """`settings` with each `a.b=value` put at its dotted path; values are read as YAML.

    Raises:
        ConfigError: an override without `=`, or a path that leads through something not a mapping.
    """
    result = _copy(settings)
    for override in overrides:
        path, separator, text = override.partition("=")
        if not separator or not path.strip():
            raise ConfigError(f"--set {override!r}: write it as path.to.setting=value")
        set_path(result, path.strip(), parse_yaml(text, f"--set {path}"))
    return result


def set_path(settings: dict[str, Any], path: str, value: Any) -> None:
    """Put `value` at a dotted path, in place, making mappings on the way."""
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
    """Settings as their typed class.

    Args:
        config_class: what they should be.
        settings: as written.
        where: dotted path of the settings, for the message.

    Raises:
        ConfigError: one line a mistake, each naming the field, its value and what is allowed.
    """
    try:
        return config_class.model_validate(settings)
    except ValidationError as error:
        mistakes = [dict(mistake) for mistake in error.errors()]
        lines: dict[tuple[str, ...], str] = {}
        for mistake in mistakes:
            if not _is_other_arm(mistake, mistakes):
                # A field that may be of several types is refused once for each; the first is the usual one.
                lines.setdefault(_field(mistake), _describe(mistake, config_class, where))
        raise ConfigError("\n".join(dict.fromkeys(lines.values()))) from error


def load_config(config_class: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """A step's settings from a YAML file and overrides.

    Raises:
        ConfigError: a mistake in them, or the file is a whole pipeline.
    """
    settings = read_yaml(path)
    if isinstance(settings.get("steps"), dict):
        raise ConfigError(f"{path}: a pipeline of steps, not the settings of one; use `headway run {path}`")
    return validate(config_class, apply_overrides(settings, overrides))


def load_pipeline(path: Path, overrides: Iterable[str] = ()) -> PipelineConfig:
    """A pipeline from a YAML file; an override's path begins with the step: `pretrain.steps=10`.

    Raises:
        ConfigError: a mistake anywhere in the file, its steps or the overrides.
    """
    settings = read_yaml(path)
    steps = settings.get("steps")
    overridden = apply_overrides(steps if isinstance(steps, dict) else {}, overrides)
    for name in overridden:
        if isinstance(steps, dict) and name not in steps:
            raise ConfigError(f"--set {name}: no step of that name{_suggest(name, steps)}")
    if isinstance(steps, dict):
        settings["steps"] = overridden
    return check_pipeline(validate(PipelineConfig, settings))


def check_pipeline(pipeline: PipelineConfig) -> PipelineConfig:
    """The same pipeline, once the settings of every step have proved valid."""
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


def _field(mistake: dict[str, Any]) -> tuple[str, ...]:
    """Where a user wrote it: without the names of the types that a union tried."""
    return tuple(str(part) for part in mistake["loc"] if not _is_type_tag(str(part)))


def _is_other_arm(mistake: dict[str, Any], mistakes: list[dict[str, Any]]) -> bool:
    """Whether a group of settings, wrong inside, was refused besides for not being a text."""
    field = _field(mistake)
    inside = [_field(other)[len(field) :] for other in mistakes if _field(other)[: len(field)] == field]
    return isinstance(mistake.get("input"), dict | list) and any(inside)


def _describe(mistake: dict[str, Any], config_class: type[Config], where: str) -> str:
    location = _field(mistake)
    field = ".".join([where, *location] if where else location) or config_class.__name__
    kind, value = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        return f"{field}: unknown setting{_suggest(location[-1], _known_fields(config_class, location[:-1]))}"
    if kind == "missing":
        return f"{field}: missing; it must be set"
    if kind == "unknown_kind" and isinstance(value, dict):
        field, value = f"{field}.kind", value["kind"]
    message = mistake["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return f"{field}: {message}"
    return f"{field}: {reprlib.repr(value)} is not allowed; it should be {message}"


def _is_type_tag(part: str) -> bool:
    return part in {"str", "int", "float", "constrained-int"} or part.endswith(("Config", "Task", "]"))


def _known_fields(config_class: type[Config], groups: Iterable[str]) -> list[str]:
    """Names a user may have meant: those of the group a mistake is in, and of the groups inside it."""
    for group in groups:
        field = config_class.model_fields.get(group)
        config_class = next(_config_types(field.annotation), config_class) if field else config_class
    names = list(config_class.model_fields)
    for field in config_class.model_fields.values():
        names += [name for inner in _config_types(field.annotation) for name in inner.model_fields]
    return names


def _config_types(annotation: Any) -> Iterator[type[Config]]:
    """The classes of settings in a field's type, which may be a union."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        yield annotation
    for part in get_args(annotation):
        yield from _config_types(part)


def _suggest(name: str, known: Iterable[str]) -> str:
    known = [other for other in known if other != name]
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(set(known)))}"


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing"}
    return names.get(type(value), f"{value!r}")
