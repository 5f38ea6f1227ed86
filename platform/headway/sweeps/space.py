"""Parses a sweep's search space: `loguniform(a, b)`, `uniform(a, b)`, `choice(a, b, …)` and lists."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from headway.config.base import ConfigError
from headway.config.loading import apply_overrides, parse_yaml, set_path, validate
from headway.config.sweep import SearchSpace
from headway.config.training import TrainingConfig

C = TypeVar("C", bound=TrainingConfig)
_CALL = re.compile(r"^\s*(loguniform|uniform|choice)\s*\((.*)\)\s*$", re.DOTALL)


class Range(NamedTuple):
    """Numbers from `low` to `high`; with `log`, their logarithms are uniform."""

    low: float
    high: float
    log: bool


Domain = Range | list[Any]


def parse_domain(path: str, written: str | list[Any]) -> Domain:
    """What a setting is searched over.

    Raises:
        ConfigError: it is not a search; its bounds are not numbers, not in order, or not positive for
            `loguniform`; or the list is empty.
    """
    if isinstance(written, str):
        match = _CALL.match(written)
        if not match:
            raise ConfigError(
                f"search.{path}: {written!r} is not a search; allowed: loguniform(a, b), uniform(a, b), "
                "choice(a, b, …) or a list"
            )
        if match[1] != "choice":
            return _range(path, written, match[1], match[2].split(","))
        written = parse_yaml(f"[{match[2]}]", f"search.{path}")
    if not written:
        raise ConfigError(f"search.{path}: the list is empty")
    return list(written)


def _range(path: str, written: str, kind: str, bounds: list[str]) -> Range:
    try:
        low, high = (float(bound) for bound in bounds)
    except ValueError as error:
        raise ConfigError(f"search.{path}: the bounds of {written!r} are not numbers") from error
    if not low < high or not math.isfinite(high) or (kind == "loguniform" and low <= 0):
        raise ConfigError(f"search.{path}: the bounds of {written!r} are not in order, or not above 0")
    return Range(low, high, kind == "loguniform")


def parse_search(search: SearchSpace) -> dict[str, Domain]:
    """The whole space, by dotted path."""
    return {path: parse_domain(path, written) for path, written in search.items()}


def grid_points(space: dict[str, Domain]) -> list[dict[str, Any]]:
    """All combinations of the values of lists.

    Raises:
        ConfigError: a domain is a range, which has no list of values.
    """
    for path, domain in space.items():
        if isinstance(domain, Range):
            raise ConfigError(f"search.{path}: algorithm grid needs a list of values, not a range")
    values = [domain for domain in space.values() if isinstance(domain, list)]
    return [dict(zip(space, combination, strict=True)) for combination in itertools.product(*values)]


def check_search(
    space: dict[str, Domain], config_class: type[TrainingConfig], shared: dict[str, Any]
) -> None:
    """Refuse a search that would give a trial an unknown setting or a value that is not allowed.

    Raises:
        ConfigError: names the path and the value.
    """
    for path, domain in space.items():
        for value in _extremes(domain):
            trial_settings(config_class, shared, {path: value})


def trial_settings(config_class: type[C], shared: dict[str, Any], sampled: dict[str, Any]) -> C:
    """What one trial trains with: the shared settings, with the sampled values at their dotted paths."""
    settings = apply_overrides(shared, [])
    for path, value in sampled.items():
        set_path(settings, path, value)
    where = "pretrain" if "corpus" in config_class.model_fields else "finetune"
    return validate(config_class, settings, where)


def _extremes(domain: Domain) -> Iterator[Any]:
    yield from domain[:2] if isinstance(domain, Range) else domain
