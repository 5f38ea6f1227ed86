"""What one setting is searched over: a range of numbers, written as Ray Tune's functions are, or a list.

uniform(0.0, 0.2)  loguniform(1e-5, 1e-3)              numbers between the bounds
quniform(0.0, 0.2, 0.05)  qloguniform(1e-5, 1e-3, 1e-5)  multiples of the last number, both bounds included
randint(1, 8)  lograndint(1, 64)                       whole numbers, the upper bound left out
qrandint(8, 64, 8)  qlograndint(8, 256, 8)             whole multiples, both bounds included
choice(adamw, lamb)                                    the same as the list [adamw, lamb]
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from headway.config.base import ConfigError
from headway.config.loading import parse_yaml

_CALL = re.compile(r"^\s*(q?)(log)?(uniform|randint)\s*\((.*)\)\s*$", re.DOTALL)
_CHOICE = re.compile(r"^\s*choice\s*\((.*)\)\s*$", re.DOTALL)
_FORMS = (
    "uniform(a, b), loguniform(a, b), randint(a, b), lograndint(a, b), these in multiples of q (quniform(a, "
    "b, q) and so on), choice(a, b, …) or a list"
)


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: the smallest.
        high: the largest.
        is_log: whether logarithms are uniform, not the numbers themselves.
        quantum: only multiples of it; None for all numbers.
        is_whole: whether the values are integers.
    """

    low: float
    high: float
    is_log: bool = False
    quantum: float | None = None
    is_whole: bool = False

    def fitted(self, number: float) -> float | int:
        """The value of the range that is nearest to a number."""
        number = min(max(number, self.low), self.high)
        if self.quantum is not None:
            # Without the digits that binary fractions add: 0.30000000000000004 is written by nobody.
            number = float(f"{round(number / self.quantum) * self.quantum:.12g}")
        return round(number) if self.is_whole else number

    def at(self, fraction: float) -> float | int:
        """The value below which a fraction (0 … 1) of the range is; of a random fraction, a random value."""
        # Without half a quantum on either side the values at the ends would be half as likely.
        margin = 0.0 if self.quantum is None or self.is_log else self.quantum / 2
        low, high = self.low - margin, self.high + margin
        if self.is_log:
            return self.fitted(math.exp(math.log(low) + fraction * (math.log(high) - math.log(low))))
        return self.fitted(low + fraction * (high - low))

    def scaled(self, value: float, factor: float) -> float | int:
        """A value times a factor, within the range; with a quantum, at least the next value that way."""
        moved = self.fitted(value * factor)
        if moved == value and self.quantum is not None:
            return self.fitted(value + math.copysign(self.quantum, value * factor - value))
        return moved

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and math.isclose(self.fitted(value), value, rel_tol=1e-9)


Domain = Range | list[Any]


def parse_domain(path: str, written: str | list[Any], is_whole: bool = False) -> Domain:
    """What a setting is searched over.

    Args:
        path: the dotted path of the setting, for messages.
        written: as the user wrote it.
        is_whole: whether the setting takes only whole numbers; then any range has only those.

    Raises:
        ConfigError: it is not a search; its bounds are not numbers, not in order, not positive for a
            logarithm, not whole, or not multiples of the quantum; or the list is empty.
    """
    if isinstance(written, str):
        if match := _CALL.match(written):
            has_quantum, is_log, kind, arguments = match.groups()
            return _Call(f"search.{path}", written, bool(has_quantum), bool(is_log)).range(
                arguments.split(","), kind, is_whole
            )
        match = _CHOICE.match(written)
        if match is None:
            raise ConfigError(f"search.{path}: {written!r} is not a search; allowed: {_FORMS}")
        written = parse_yaml(f"[{match[1]}]", f"search.{path}")
    if not written:
        raise ConfigError(f"search.{path}: the list is empty")
    return list(written)


@dataclass(frozen=True)
class _Call:
    """A range as it is written, to be refused in one line."""

    where: str
    written: str
    has_quantum: bool
    is_log: bool

    def range(self, arguments: list[str], kind: str, is_whole: bool) -> Range:
        low, high, *more = self._numbers(arguments)
        quantum = more[0] if more else None
        excludes_high = kind == "randint" and quantum is None
        is_whole = is_whole or kind == "randint"
        if is_whole and not all(number.is_integer() for number in (low, high, *more)):
            raise self._error("are not whole numbers")
        if excludes_high:
            high -= 1
        if quantum is not None and not (
            quantum > 0 and _is_multiple(low, quantum) and _is_multiple(high, quantum)
        ):
            raise self._error(f"are not multiples of a quantum above 0, {quantum:g}")
        # A range of one whole number is a range, since its upper bound is left out.
        if low > high or (low == high and not excludes_high) or not math.isfinite(high - low):
            raise self._error("are not in order")
        if self.is_log and low <= 0:
            raise self._error("are not above 0, which a logarithm needs")
        return Range(low, high, self.is_log, 1.0 if is_whole and quantum is None else quantum, is_whole)

    def _numbers(self, arguments: list[str]) -> list[float]:
        if len(arguments) != 2 + self.has_quantum:
            wanted = "two bounds and a quantum" if self.has_quantum else "two bounds"
            raise ConfigError(f"{self.where}: {self.written!r} should have {wanted}")
        try:
            return [float(argument) for argument in arguments]
        except ValueError as error:
            raise self._error("are not numbers") from error

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"{self.where}: the bounds of {self.written!r} {what}")


def _is_multiple(number: float, quantum: float) -> bool:
    return math.isclose(number / quantum, round(number / quantum), abs_tol=1e-9)
