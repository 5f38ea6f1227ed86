"""Proposes the values of the next trial, with Optuna, and gives Ray Tune its trials.

Restarting the driver changes no proposal. Optuna's study is not restored from a file: it is told again what
the ledger holds, which is the only record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from headway.config.sweep import SweepConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.space import Domain, Range, grid_points


class Sampler:
    """Proposes values: at random, from a grid, or near those of earlier good trials (TPE)."""

    def __init__(self, config: SweepConfig, space: dict[str, Domain], *modes: str) -> None:
        """`modes`: `max` or `min` of each metric."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._config = config
        self._space = space
        self._grid = _shuffled(grid_points(space), config.seed) if config.algorithm == "grid" else []
        self._distributions = {path: _distribution(domain) for path, domain in space.items()}
        self._study = optuna.create_study(directions=[f"{mode}imize" for mode in modes])
        self._asked: dict[int, Any] = {}
        self.total = trial_count(config, space)

    def propose(self, number: int) -> dict[str, Any]:
        """Values of the trial with this number; they depend on it, the seed and the trials told so far."""
        if self._grid:
            return self._grid[number]
        seed = derived_seed(self._config.seed, number)
        samplers = self._optuna.samplers
        if self._config.algorithm == "tpe":
            # Random trials first, for the model to start from.
            startup = min(10, max(2, self.total // 4))
            self._study.sampler = samplers.TPESampler(seed=seed, n_startup_trials=startup)
        else:
            self._study.sampler = samplers.RandomSampler(seed=seed)
        asked = self._asked[number] = self._study.ask(self._distributions)
        return {path: self._value(path, asked.params[path]) for path in self._space}

    def tell(self, trial: Trial, values: list[float]) -> None:
        """Learn from how a trial ended, by each metric."""
        asked = self._asked.pop(trial.number, None)
        states = self._optuna.trial.TrialState
        finite = all(map(math.isfinite, values))
        if asked is not None:
            self._study.tell(asked, values if finite else None, None if finite else states.FAIL)
        elif finite:
            params = {path: self._param(path, trial.sampled[path]) for path in self._space}
            create = self._optuna.trial.create_trial
            self._study.add_trial(create(params=params, distributions=self._distributions, values=values))

    def _value(self, path: str, param: Any) -> Any:
        domain = self._space[path]
        return param if isinstance(domain, Range) else domain[param]

    def _param(self, path: str, value: Any) -> Any:
        domain = self._space[path]
        return value if isinstance(domain, Range) else domain.index(value)


def trial_count(config: SweepConfig, space: dict[str, Domain]) -> int:
    """Trials of the whole sweep."""
    return len(grid_points(space)) if config.algorithm == "grid" else config.samples


def _shuffled(points: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """In random order, so that the trials a scheduler compares with are not from one corner of the grid."""
    order = np.random.default_rng(derived_seed(seed, 0)).permutation(len(points))
    return [points[index] for index in order]


def _distribution(domain: Domain) -> Any:
    """Optuna's distribution; for a list it is over indices, since its values may be of any type."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(domain, Range):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    return CategoricalDistribution(range(len(domain)))


def next_trials(ledger: Ledger, sampler: Sampler) -> Iterator[Trial]:
    """Trials that an earlier driver left unfinished, then new ones, made as they are asked for."""
    yield from [trial for trial in ledger.trials() if trial.ended is None]
    while (number := len(ledger.trials())) < sampler.total:
        yield ledger.new(sampler.propose(number))


def point_of(trial: Trial) -> dict[str, Any]:
    """What Ray Tune gives to a trial."""
    return {"number": trial.number, "sampled": trial.sampled}


def make_searcher(sampler: Sampler, ledger: Ledger, metrics: list[str]) -> Any:
    """What Ray Tune asks for trials, and tells how each ended."""
    from ray.tune.search import Searcher

    coming = next_trials(ledger, sampler)
    known: dict[str, Trial] = {}

    class Search(Searcher):
        def __reduce__(self) -> Any:
            # Tune stores its searcher with the experiment; this one belongs to the living driver.
            return Searcher, ()

        def suggest(self, trial_id: str) -> Any:
            trial = next(coming, None)
            if trial is None:
                return Searcher.FINISHED
            known[trial_id] = trial
            return {"point": point_of(trial)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            sampler.tell(known[trial_id], [(result or {}).get(metric, math.nan) for metric in metrics])

        def save(self, checkpoint_path: str) -> None:
            """The ledger is the only record."""

        def restore(self, checkpoint_path: str) -> None:
            """See `save`."""

    return Search()


class TrialSource(NamedTuple):
    """Where Ray Tune takes its trials from.

    Attributes:
        num_samples: how often Ray Tune takes all points of `param_space`, or asks the searcher.
        searcher: what is asked for each trial; None if `param_space` has them all.
        param_space: what Ray Tune gives to trials besides.
    """

    num_samples: int
    searcher: Any
    param_space: dict[str, Any]


def trial_source(
    config: SweepConfig, sampler: Sampler, ledger: Ledger, metrics: list[str], remaining: int
) -> TrialSource:
    """Where the remaining trials of a sweep come from.

    Population-based training takes no searcher: its whole population is made beforehand, and taken once.
    """
    from ray import tune

    if config.scheduler != "pbt":
        return TrialSource(remaining, make_searcher(sampler, ledger, metrics), {})
    points = [point_of(trial) for trial in next_trials(ledger, sampler)]
    return TrialSource(1, None, {"point": tune.grid_search(points)})
