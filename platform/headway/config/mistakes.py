"""Describes what is wrong with settings: one line for each mistake, with field, value and what is allowed."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import Tag, ValidationError

from headway.config.base import Config, ConfigError

_KEY = "[key]"
"""What pydantic adds to the location of a mapping's key, as opposed to its value."""

_OTHER_NAMES = {
    "bf16": "precision",
    "certificate": "ssl_certfile",
    "eval_steps": "evaluate_every",
    "fp16": "precision",
    "gpus": "workers",
    "gradient_accumulation_steps": "gradient_accumulation",
    "load_best_model_at_end": "best_by",
    "logging_steps": "log_every",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "max_concurrent_trials": "concurrency",
    "max_seq_length": "max_length",
    "max_steps": "steps",
    "metric_for_best_model": "best_by",
    "mlm_probability": "rate",
    "model_name_or_path": "model",
    "n_gpus": "workers",
    "n_trials": "samples",
    "num_gpus": "workers",
    "num_samples": "samples",
    "num_train_epochs": "epochs",
    "num_trials": "samples",
    "num_workers": "workers",
    "param_space": "search",
    "per_device_eval_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "points_to_evaluate": "first_points",
    "private_key": "ssl_keyfile",
    "rate": "requests_per_second",
    "rate_limit": "requests_per_second",
    "replica_tokens": "target_queued_tokens",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "search_alg": "algorithm",
    "share": "fraction",
    "train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
}
"""Names that a user may bring along for a setting whose own name does not resemble them."""


def describe_mistakes(error: ValidationError, config_class: type[Config], where: str = "") -> str:
    """One line for each mistake that pydantic found in settings of a class.

    Args:
        error: what pydantic raised.
        config_class: the class that the settings were validated as.
        where: the dotted path of those settings, which the lines begin with.
    """
    mistakes = [(_locate(mistake["loc"], config_class), dict(mistake)) for mistake in error.errors()]
    paths = [field.path for field, _ in mistakes]
    lines: dict[tuple[str, ...], str] = {}
    for field, mistake in mistakes:
        if not _is_of_other_member(field.path, mistake, paths):
            # A field of several types is refused once for each of them; the first is the usual one.
            lines.setdefault(field.path, _describe(field, mistake, where))
    return "\n".join(dict.fromkeys(lines.values()))


class _Field(NamedTuple):
    """Where a mistake is: the path as a user writes it, and the class whose field its last part names."""

    path: tuple[str, ...]
    group: type[Config]


def _locate(location: Iterable[int | str], config_class: type[Config]) -> _Field:
    """Follow a pydantic location along the types; it also names the member tried of each union it crosses."""
    annotation: Any = config_class
    group, path = config_class, []
    for part in location:
        members = _members(annotation)
        if len(members) > 1:
            annotation = next((member for member in members if _is_named(member, part)), Any)
            continue
        if part == _KEY:
            continue
        path.append(str(part))
        [annotation] = members
        if _is_config(annotation):
            group = annotation
            field = group.model_fields.get(str(part))
            annotation = field.annotation if field else Any
        else:
            annotation = (get_args(annotation) or (Any,))[-1]  # of a list's items, or a mapping's values
    return _Field(tuple(path), group)


def _members(annotation: Any) -> list[Any]:
    """The members of a union, except None, as they are annotated; otherwise the type itself."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, UnionType):
        return [annotation]
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members if len(members) > 1 else _members(members[0])


def _is_named(member: Any, part: int | str) -> bool:
    """Whether a union's member is the one that a part of a location names: by its tag, or by its class."""
    if any(isinstance(note, Tag) and note.tag == part for note in get_args(member)[1:]):
        return True
    return _is_config(member) and member.__name__ == part


def _is_config(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Config)


def _is_of_other_member(
    path: tuple[str, ...], mistake: dict[str, Any], paths: Iterable[tuple[str, ...]]
) -> bool:
    """Whether a group with mistakes inside it was refused for not being text, too."""
    inside = any(len(other) > len(path) and other[: len(path)] == path for other in paths)
    return isinstance(mistake.get("input"), dict | list) and inside


def _describe(field: _Field, mistake: dict[str, Any], where: str) -> str:
    name = ".".join([where, *field.path] if where else field.path) or field.group.__name__
    kind, value = mistake["type"], mistake.get("input")
    if kind == "extra_forbidden":
        return f"{name}: unknown setting{_suggest_setting(field.path[-1], field.group)}"
    if kind == "missing":
        return f"{name}: missing; it must be set"
    if kind in ("unknown_kind", "unknown_name") and isinstance(value, dict):
        key = kind.removeprefix("unknown_")
        name, value = f"{name}.{key}", value[key]
    message = mistake["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{name}: {message}"
    message = re.sub(r"^\w+ should ", "", message)  # "Input should be …", "String should match …"
    return f"{name}: {reprlib.repr(value)} is not allowed; it should {message}"


def _suggest_setting(name: str, group: type[Config]) -> str:
    """What a user may have meant by an unknown name: a setting beside it, or one of a group inside."""
    beside = list(group.model_fields)
    inside = dict(_settings_inside(group))
    if name in inside:
        return f"; it belongs in {inside[name]!r}"
    other = _OTHER_NAMES.get(name)
    if other in beside:
        return f"; did you mean {other!r}?"
    if other in inside:
        return f"; did you mean {inside[other]!r}?"
    if close := _closest(name, beside):
        return f"; did you mean {close!r}?"
    if close := _closest(name, inside):
        return f"; did you mean {inside[close]!r}?"
    return suggest(name, beside)


def _settings_inside(group: type[Config]) -> Iterator[tuple[str, str]]:
    """The settings of the groups in a group: name and dotted path."""
    for outer, field in group.model_fields.items():
        for inner in _config_classes(field.annotation):
            yield from ((name, f"{outer}.{name}") for name in inner.model_fields)


def _config_classes(annotation: Any) -> Iterator[type[Config]]:
    """The classes of settings in a field's type, which may be a union."""
    if _is_config(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _config_classes(part)


def _closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that has all words of `name` among its own, or is spelled most like it."""
    known = list(known)
    words = set(name.split("_"))
    for other in known:
        if words <= set(other.split("_")):
            return other
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest one, or all that are known."""
    known = list(known)
    close = _closest(name, known)
    return f"; did you mean {close!r}?" if close else f"; known: {', '.join(sorted(known))}"


def check_measure(setting: str, name: str | None, measures: Iterable[str]) -> None:
    """Refuse a name that is none of the measures.

    Raises:
        ConfigError: names the setting, and the measure that was meant or all there are.
    """
    measures = list(measures)
    if name is not None and name not in measures:
        raise ConfigError(f"{setting}: {name!r} is not measured{suggest(name, measures)}")
