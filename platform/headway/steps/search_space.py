"""A sweep's search space: `loguniform(a, b)`, `uniform(a, b)` and lists, as Ray Tune samples them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from headway.config import ConfigError, FinetuneConfig, SearchSpace
from headway.config_files import apply_overrides, set_path, validate

_RANGE = re.compile(r"^\s*(loguniform|uniform)\s*\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*\)\s*$")


def parse_range(path: str, text: str) -> tuple[str, float, float]:
    """Kind and bounds of a range.

    Raises:
        ConfigError: it is none, or its bounds are no numbers, not in order, or not positive for a logarithm.
    """
    match = _RANGE.match(text)
    if not match:
        raise ConfigError(
            f"search.{path}: {text!r} is not a search; allowed: loguniform(a, b), uniform(a, b) or a list"
        )
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError as error:
        raise ConfigError(f"search.{path}: the bounds of {text!r} are not numbers") from error
    if not low < high or not math.isfinite(high) or (match[1] == "loguniform" and low <= 0):
        raise ConfigError(f"search.{path}: the bounds of {text!r} are not in order, or not above 0")
    return match[1], low, high


def tune_space(search: SearchSpace) -> dict[str, Any]:
    """The search space as Ray Tune's domains, by dotted path."""
    from ray import tune

    space: dict[str, Any] = {}
    for path, domain in search.items():
        if isinstance(domain, list):
            space[path] = tune.choice(domain)
        else:
            kind, low, high = parse_range(path, domain)
            space[path] = tune.loguniform(low, high) if kind == "loguniform" else tune.uniform(low, high)
    return space


def check_search(search: SearchSpace, shared: dict[str, Any]) -> None:
    """Refuse a search that would hand a trial a setting that is unknown or not allowed.

    Raises:
        ConfigError: names the path and the value.
    """
    for path, domain in search.items():
        if isinstance(domain, list) and not domain:
            raise ConfigError(f"search.{path}: the list is empty")
        for value in _extremes(path, domain):
            trial_settings(shared, {path: value})


def trial_settings(shared: dict[str, Any], sampled: dict[str, Any]) -> FinetuneConfig:
    """What one trial trains with: the shared settings, and the sampled ones at their dotted paths."""
    settings = apply_overrides({"model": "model", "task": "task"} | shared, [])
    for path, value in sampled.items():
        set_path(settings, path, value)
    return validate(FinetuneConfig, settings, "finetune")


def _extremes(path: str, domain: str | list[Any]) -> Iterator[Any]:
    if isinstance(domain, list):
        yield from domain
    else:
        yield from parse_range(path, domain)[1:]
