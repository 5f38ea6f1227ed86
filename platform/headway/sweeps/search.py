"""Which values the next trial gets, and when a trial is stopped; restarting the driver changes neither.

Optuna proposes values, and Ray Tune's schedulers stop trials. Neither is restored from a file: both are told
again what the ledger holds, which is the only record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from headway.cluster import ray_internals
from headway.config.sweep import SweepConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.space import Domain, Range, grid_points

_REDUCTION = 3
"""Of the trials that reach a rung, one in this many continues; rungs are at its powers, in rounds (Li et al.
2020, "ASHA")."""
SUCCESSIVE_HALVING = ("asha", "hyperband")
"""Schedulers that judge a trial only at its rungs."""
_MAX_ROUNDS = 2**16
_BRACKETS = 2
"""For `hyperband`: one stops trials from the first evaluation on, the other from the third."""


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
        """Values of the trial with this number; they depend only on it, the seed and the trials told of."""
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


def make_scheduler(config: SweepConfig, space: dict[str, Domain], metric: str, mode: str) -> Any:
    """The configured scheduler of Ray Tune; it counts a trial's time in rounds."""
    from ray.tune import schedulers

    mutations = {path: _mutation(domain) for path, domain in space.items()}
    common = {"time_attr": "round", "metric": metric, "mode": mode}
    match config.scheduler:
        case "asha":
            # Trials end by themselves; `max_t` is beyond any, and only says how many rungs there are.
            return schedulers.ASHAScheduler(
                **common, max_t=_MAX_ROUNDS, grace_period=1, reduction_factor=_REDUCTION
            )
        case "hyperband":
            return _bracketed(config)(
                **common, max_t=_MAX_ROUNDS, grace_period=1, reduction_factor=_REDUCTION, brackets=_BRACKETS
            )
        case "median":
            return schedulers.MedianStoppingRule(**common, grace_period=2, min_samples_required=3)
        case "pbt":
            return schedulers.PopulationBasedTraining(
                **common,
                perturbation_interval=1,
                hyperparam_mutations={"point": {"sampled": mutations}},
                log_config=False,
            )
        case _:
            return schedulers.FIFOScheduler()


def rung_steps(steps_per_round: int, total_steps: int) -> tuple[int, ...]:
    """The steps at which successive halving judges a trial before its end."""
    rungs = math.ceil(math.log(total_steps, _REDUCTION)) + 1
    steps = (steps_per_round * _REDUCTION**rung for rung in range(rungs))
    return tuple(step for step in steps if step < total_steps)


def _bracketed(config: SweepConfig) -> Any:
    """ASHA that assigns a trial to a bracket by its number, so that a restart assigns it the same."""
    from ray.tune import schedulers

    class Bracketed(schedulers.ASHAScheduler):
        def on_trial_add(self, controller: Any, trial: Any) -> None:
            # Li et al. 2018, "Hyperband": the sooner a bracket stops trials, the more begin in it.
            weights = np.asarray([float(_REDUCTION) ** -bracket for bracket in range(_BRACKETS)])
            rng = np.random.default_rng(derived_seed(config.seed, trial.config["point"]["number"]))
            bracket = rng.choice(_BRACKETS, p=weights / weights.sum())
            if not ray_internals.put_in_bracket(self, trial, int(bracket)):
                super().on_trial_add(controller, trial)

    return Bracketed


def _mutation(domain: Domain) -> Any:
    from ray import tune

    if isinstance(domain, Range):
        return (
            tune.loguniform(domain.low, domain.high) if domain.log else tune.uniform(domain.low, domain.high)
        )
    return domain


def replay(
    trials: list[Trial], scheduler: Any, sampler: Sampler, config: SweepConfig, metrics: list[str]
) -> None:
    """Tell a new sampler and scheduler of the trials that ended before a restart of the driver."""
    for trial in trials:
        if trial.ended is None or not (measured := trial.evaluations()):
            continue
        sampler.tell(trial, [measured[-1].metrics.get(metric, math.nan) for metric in metrics])
        replayed = _ReplayedTrial(trial_id=f"earlier-{trial.number}", config={"point": point_of(trial)})
        results = [{"round": trial.round_of(entry.step), **entry.metrics} for entry in measured]
        if config.scheduler in SUCCESSIVE_HALVING:
            scheduler.on_trial_add(None, replayed)
            for result in results:
                scheduler.on_trial_result(None, replayed, result)
        elif config.scheduler == "median":
            for result in results:
                scheduler.on_trial_complete(None, replayed, result)


class _ReplayedTrial(SimpleNamespace):
    """An earlier trial as a scheduler sees it; hashable, since the scheduler keeps it in dictionaries."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.trial_id)
