"""A sweep's search space: what each setting is searched over, and when it is searched at all."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, TypeVar, get_args

from headway.config.base import Config, ConfigError
from headway.config.loading import apply_overrides, set_path, validate
from headway.config.mistakes import suggest
from headway.config.sweep import ConditionalSearch, SearchSpace
from headway.sweeps.search.domain import Domain, Range, parse_domain

C = TypeVar("C", bound=Config)


class Parameter(NamedTuple):
    """A setting that is searched.

    Attributes:
        domain: over what.
        when: dotted path of another setting → values of it; the setting is searched only if each of these
            others has one of its values.
    """

    domain: Domain
    when: dict[str, list[Any]]

    def is_active(self, sampled: dict[str, Any]) -> bool:
        """Whether the setting is searched in a trial with these values."""
        return all(path in sampled and sampled[path] in values for path, values in self.when.items())


Space = dict[str, Parameter]
"""Dotted path → parameter; each after those that it depends on."""


def parse_search(search: SearchSpace, config_class: type[Config]) -> Space:
    """The whole space.

    Args:
        search: as the user wrote it.
        config_class: of the settings that are searched; ranges of its whole numbers have only those.

    Raises:
        ConfigError: names the path.
    """
    space = {}
    for path, written in search.items():
        when = {}
        if isinstance(written, ConditionalSearch):
            when = {
                name: value if isinstance(value, list) else [value] for name, value in written.when.items()
            }
            written = written.values
        space[path] = Parameter(parse_domain(path, written, _takes_whole_numbers(config_class, path)), when)
    for path, parameter in space.items():
        _check_conditions(path, parameter, space)
    try:
        order = TopologicalSorter({path: parameter.when for path, parameter in space.items()}).static_order()
        return {path: space[path] for path in order}
    except CycleError as error:
        raise ConfigError(f"search.{error.args[1][0]}.when: it depends on itself") from error


def _check_conditions(path: str, parameter: Parameter, space: Space) -> None:
    for other, values in parameter.when.items():
        if other not in space:
            raise ConfigError(f"search.{path}.when: {other!r} is not searched{suggest(other, space)}")
        for value in values:
            if value not in space[other].domain:
                raise ConfigError(f"search.{path}.when.{other}: {value!r} is not among its values")


def assign(space: Space, given: dict[str, Any], draw: Callable[[str, Domain], Any]) -> dict[str, Any]:
    """Values of a trial: those given, and what is drawn for the others that are searched with them."""
    sampled: dict[str, Any] = {}
    for path, parameter in space.items():
        if parameter.is_active(sampled):
            sampled[path] = given[path] if path in given else draw(path, parameter.domain)
    return sampled


def grid_points(space: Space) -> list[dict[str, Any]]:
    """All combinations of the values of lists.

    Raises:
        ConfigError: a domain is a range, which has no list of values.
    """
    points: list[dict[str, Any]] = [{}]
    for path, parameter in space.items():
        domain = parameter.domain
        if isinstance(domain, Range):
            raise ConfigError(f"search.{path}: algorithm grid needs a list of values, not a range")
        points = [
            point | values
            for point in points
            for values in ([{path: value} for value in domain] if parameter.is_active(point) else [{}])
        ]
    return points


def check_search(space: Space, config_class: type[Config], shared: dict[str, Any]) -> None:
    """Refuse a search that would give a trial an unknown setting or a value that is not allowed.

    Raises:
        ConfigError: names the path and the value.
    """
    for path, parameter in space.items():
        for needed in _ways_to(path, space):
            for value in _extremes(parameter.domain):
                trial_settings(config_class, shared, needed | {path: value})


def check_first_points(points: list[dict[str, Any]], space: Space) -> None:
    """Refuse points that are not in the space.

    Raises:
        ConfigError: names the point, its setting and the value.
    """
    for number, point in enumerate(points):
        for path, value in point.items():
            where = f"first_points.{number}.{path}"
            if path not in space:
                raise ConfigError(f"{where}: not searched{suggest(path, space)}")
            if value not in space[path].domain:
                raise ConfigError(f"{where}: {value!r} is not in what the search has for it")
            if not space[path].is_active(point):
                needed = ", ".join(f"{name}: {values}" for name, values in space[path].when.items())
                raise ConfigError(f"{where}: searched only with {needed}, which the point should give too")


def trial_settings(config_class: type[C], shared: dict[str, Any], sampled: dict[str, Any]) -> C:
    """What one trial trains with: the shared settings, with the sampled values at their dotted paths."""
    settings = apply_overrides(shared, [])
    for path, value in sampled.items():
        # A value may be a group of settings, in which a longer path then sets one.
        set_path(settings, path, copy.deepcopy(value))
    return validate(config_class, settings, _name_of(config_class))


def _name_of(config_class: type[Config]) -> str:
    """Where a user writes settings of a class, for messages."""
    if "finetune" in config_class.model_fields:
        return "search"
    return "pretrain" if "corpus" in config_class.model_fields else "finetune"


def _ways_to(path: str, space: Space) -> Iterator[dict[str, Any]]:
    """Values of other settings with which a setting is searched, in all ways."""
    when = space[path].when
    for values in itertools.product(*when.values()):
        direct = dict(zip(when, values, strict=True))
        for before in itertools.product(*(_ways_to(other, space) for other in when)):
            way: dict[str, Any] = {}
            for part in before:
                way |= part
            # An indirect condition may want another value of the same setting: then no trial has both.
            if all(way.get(name, value) == value for name, value in direct.items()):
                yield way | direct


def _extremes(domain: Domain) -> list[Any]:
    return [domain.fitted(domain.low), domain.fitted(domain.high)] if isinstance(domain, Range) else domain


def _takes_whole_numbers(config_class: type[Config], path: str) -> bool:
    """Whether the setting at a path is a number, and has to be a whole one."""
    annotations: list[Any] = [config_class]
    for part in path.split("."):
        groups = [kind for annotation in annotations for kind in _types_in(annotation)]
        annotations = [
            group.model_fields[part].annotation
            for group in groups
            if isinstance(group, type) and issubclass(group, Config) and part in group.model_fields
        ]
    types = {kind for annotation in annotations for kind in _types_in(annotation)}
    return int in types and float not in types


def _types_in(annotation: Any) -> Iterator[Any]:
    """The type itself, and those inside a union or an annotation."""
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)
