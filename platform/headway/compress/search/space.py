"""What a search for a smaller model varies, and what it tries first."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from headway.config.base import ConfigError
from headway.config.compression.compress import CandidateConfig, CompressConfig
from headway.data.corpus.vocabulary import most_used_tokens
from headway.engine.pruning.cut import Sizes
from headway.sweeps.search.domain import Domain, Range
from headway.sweeps.search.space import Space, parse_search
from headway.tasks.task import Task

_LAYER_FRACTIONS = (1.0, 2 / 3, 1 / 2, 1 / 3, 1 / 6)
_NEURON_FRACTIONS = (1.0, 1 / 2)
_WORD_FRACTIONS = (1.0, 1 / 2, 1 / 3)
_SHAPE = ("layers", "heads", "neurons", "vocabulary")
_POINTS = 5
"""Values of a range that are considered for the first candidates."""
_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0, "int4": 0.6}
"""Of a weight; in four bits, 32 of them share a scale."""
_NEARLY = 1.1
"""A prediction that misses the target no more than so many times may well be wrong."""
_INT8_GAIN = 2.5
"""About how many times as fast a CPU computes in 8-bit integers as in fp32; only says what is tried first."""


@dataclass(frozen=True)
class Plan:
    """How candidates are proposed; see `headway.sweeps.search.sampler.Proposals`."""

    samples: int
    seed: int
    first_points: list[dict[str, Any]]
    algorithm: str = "tpe"


def search_space(config: CompressConfig, sizes: Sizes, task: Task, tokenizer: Any) -> Space:
    """What the settings search, or else what is worth searching in a model of these sizes.

    Raises:
        ConfigError: a value that the model cannot have.
    """
    written = dict(config.search)
    if not written:
        written["layers"] = _fractions(sizes.layers, _LAYER_FRACTIONS)
        written["neurons"] = _fractions(sizes.neurons, _NEURON_FRACTIONS)
        if config.target.size is not None and _is_wordpiece(tokenizer):
            texts = [text for row in task.split("train").texts for text in row]
            least, used = len(most_used_tokens(tokenizer, [])), len(most_used_tokens(tokenizer, texts))
            sizes_of_words = (max(least, size) for size in _fractions(used, _WORD_FRACTIONS))
            written["vocabulary"] = list(dict.fromkeys(sizes_of_words))
    space = parse_search(written, CandidateConfig)
    limits = {name: getattr(sizes, name) for name in ("layers", "heads", "neurons")}
    limits["vocabulary"] = len(tokenizer)
    for name, limit in limits.items():
        for value in _values(space[name].domain) if name in space else ():
            if value is not None and not (isinstance(value, int) and 1 <= value <= limit):
                raise ConfigError(f"search.{name}: {value!r} is not allowed; the model has {limit} {name}")
    return space


def _is_wordpiece(tokenizer: Any) -> bool:
    try:
        most_used_tokens(tokenizer, [])
    except ConfigError:
        return False
    return True


def _fractions(count: int, fractions: tuple[float, ...]) -> list[Any]:
    """Distinct fractions of a number, the largest first."""
    return list(dict.fromkeys(max(1, math.ceil(count * fraction - 1e-9)) for fraction in fractions))


def _values(domain: Domain) -> list[Any]:
    """All values of a domain; of a range, some that are spread over it."""
    if not isinstance(domain, Range):
        return domain
    return list(dict.fromkeys(domain.at(step / (_POINTS - 1)) for step in range(_POINTS)))


def first_points(space: Space, whole: Whole, config: CompressConfig) -> list[dict[str, Any]]:
    """What is tried before the search has learnt anything: the original as it is, then what may just do.

    Of the shapes whose predicted cost reaches the target, those that compute most come first, since they are
    the likeliest to be good enough; then those that come closest. Half of the samples are left to the search.
    """
    values = {path: _values(parameter.domain) for path, parameter in space.items() if not parameter.when}
    shapes = [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(
            *(found if path in _SHAPE else [_largest(found)] for path, found in values.items())
        )
    ]

    def rank(shape: dict[str, Any]) -> tuple[float, float, float]:
        missed = whole.shortfall(shape, config)
        return max(missed, _NEARLY), -whole.work(shape), missed

    chosen = sorted(shapes, key=rank)[: config.samples // 2]
    return [{}, *chosen]


@dataclass(frozen=True)
class Whole:
    """The original's shape, by which the cost of others is predicted, roughly.

    Attributes:
        sizes: of the encoder.
        words: of its vocabulary.
        weights: all of them.
    """

    sizes: Sizes
    words: int
    weights: int

    def work(self, shape: dict[str, Any]) -> float:
        """Weights of all layers of a smaller shape, with each of which every token is multiplied."""
        count = shape.get("layers") or self.sizes.layers
        return count * _layer_weights(self.sizes.shrunk(shape.get("heads"), shape.get("neurons")))

    def shortfall(self, shape: dict[str, Any], config: CompressConfig) -> float:
        """How many times a smaller shape will about miss what it misses most of the target; 1 is met."""
        gain = _INT8_GAIN if "int8" in config.precisions else 1.0
        time = self.work(shape) / self.work({}) / gain
        hidden = self.sizes.shrunk(shape.get("heads"), None).hidden
        tables = self.weights - self.work({}) - self.words * self.sizes.hidden
        tables = tables * hidden / self.sizes.hidden + (shape.get("vocabulary") or self.words) * hidden
        bytes_each = _BYTES[config.weights] / _BYTES["float32"]
        size = bytes_each * (self.work(shape) + tables) / self.weights
        target = config.target
        missed = [
            time / target.latency if target.latency else 1.0,
            time * target.throughput if target.throughput else 1.0,
            size / target.size if target.size else 1.0,
        ]
        return max(1.0, *missed)


def _layer_weights(sizes: Sizes) -> float:
    return 4.0 * sizes.hidden**2 + 2.0 * sizes.hidden * sizes.neurons


def _largest(values: list[Any]) -> Any:
    """The largest number; of other values, such as names, the first."""
    return max(values) if all(isinstance(value, int | float) for value in values) else values[0]
