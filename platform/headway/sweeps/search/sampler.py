"""Proposes the values of the next trial, with Optuna, and gives Ray Tune its trials.

Restarting the driver changes no proposal. Optuna's study is not restored from a file: it is told again what
the ledger holds, which is the only record.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from headway.config.sweep import SweepConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger, Trial, TrialState
from headway.sweeps.search.domain import Domain, Range
from headway.sweeps.search.space import Space, assign, grid_points
from headway.sweeps.time_budget import TimeBudget
from headway.sweeps.winner import Outcome, SettingsOf, mode_of, outcome_of


class Proposals(Protocol):
    """The settings of a step that searches, by which values are proposed; see `SweepConfig`."""

    @property
    def algorithm(self) -> str:
        """`random`, `grid` or `tpe`."""
        ...

    @property
    def samples(self) -> int:
        """Number of trials, unless they are a grid."""
        ...

    @property
    def first_points(self) -> list[dict[str, Any]]:
        """Values of the first trials, as far as they are given."""
        ...

    @property
    def seed(self) -> int:
        """Of all that is drawn."""
        ...


class Sampler:
    """Proposes values: at random, from a grid, or near those of earlier good trials (TPE)."""

    def __init__(self, config: Proposals, space: Space, metrics: list[str]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._config = config
        self._space = space
        self._metrics = metrics
        self._grid = _ordered_grid(config, space) if config.algorithm == "grid" else []
        self._study = optuna.create_study(directions=[f"{mode_of(metric)}imize" for metric in metrics])
        self._running: dict[int, Any] = {}
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
            self._study.sampler = samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
        else:
            self._study.sampler = samplers.RandomSampler(seed=seed)
        draft = self._study.ask()
        points = self._config.first_points
        given = points[number] if number < len(points) else {}
        sampled = assign(
            self._space, given, lambda path, domain: _value(domain, _suggested(draft, path, domain))
        )
        # The trial itself is one with these values, whoever proposed them: see `begin`.
        self._study.tell(draft, state=self._optuna.trial.TrialState.FAIL)
        return sampled

    def begin(self, trial: Trial) -> None:
        """Take in that a trial runs: TPE proposes nothing near it until its outcome is known."""
        if trial.number in self._running:
            return
        sampled = trial.sampled
        params = {path: _param(self._space[path].domain, value) for path, value in sampled.items()}
        self._study.enqueue_trial(params)
        asked = self._running[trial.number] = self._study.ask()
        for path in sampled:
            _suggested(asked, path, self._space[path].domain)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """Learn from how a trial ended.

        The last score of a trial that was stopped is not its final one: TPE takes the trial for worse than
        those that trained to their end, and ranks those that were stopped by how far they came, then by their
        score. One that failed, or measured nothing finite, is worse than all of them.
        """
        self.begin(trial)
        asked = self._running.pop(trial.number)
        values = [outcome.metrics.get(metric, math.nan) for metric in self._metrics]
        finite = all(map(math.isfinite, values))
        if outcome.state is TrialState.DONE and finite:
            self._study.tell(asked, values)
            return
        # Optuna ranks one without a report last. With several metrics it cannot rank those that were stopped.
        if outcome.state is TrialState.STOPPED and finite and len(values) == 1:
            asked.report(values[0], outcome.round)
        self._study.tell(asked, state=self._optuna.trial.TrialState.PRUNED)


def trial_count(config: Proposals, space: Space) -> int:
    """Trials of the whole sweep."""
    return len(grid_points(space)) if config.algorithm == "grid" else config.samples


def _ordered_grid(config: Proposals, space: Space) -> list[dict[str, Any]]:
    """In random order, so that the trials a scheduler compares with are not from one corner of the grid.

    Those that have all values of a first point come before that, in the order of the first points.
    """
    points = grid_points(space)
    order = np.random.default_rng(derived_seed(config.seed, 0)).permutation(len(points))
    shuffled = [points[index] for index in order]

    def rank(point: dict[str, Any]) -> int:
        first = (number for number, given in enumerate(config.first_points) if given.items() <= point.items())
        return next(first, len(config.first_points))

    return sorted(shuffled, key=rank)


def _suggested(trial: Any, path: str, domain: Domain) -> Any:
    """What Optuna suggests; for a list an index, since its values may be of any type."""
    if not isinstance(domain, Range):
        return trial.suggest_categorical(path, range(len(domain)))
    # Optuna knows no quantum on a logarithmic scale, except 1.
    quantum = None if domain.is_log else domain.quantum
    if domain.is_whole:
        step = int(quantum or 1)
        return trial.suggest_int(path, int(domain.low), int(domain.high), step=step, log=domain.is_log)
    return trial.suggest_float(path, domain.low, domain.high, step=quantum, log=domain.is_log)


def _value(domain: Domain, param: Any) -> Any:
    return domain.fitted(param) if isinstance(domain, Range) else domain[param]


def _param(domain: Domain, value: Any) -> Any:
    return value if isinstance(domain, Range) else domain.index(value)


def next_trials(ledger: Ledger, sampler: Sampler, budget: TimeBudget) -> Iterator[Trial]:
    """Trials that an earlier driver left unfinished, then new ones when asked for, if there is time."""
    yield from [trial for trial in ledger.trials() if trial.ended is None]
    while not budget.is_spent and (number := len(ledger.trials())) < sampler.total:
        trial = ledger.new(sampler.propose(number))
        sampler.begin(trial)
        yield trial


def point_of(trial: Trial) -> dict[str, Any]:
    """What Ray Tune gives to a trial."""
    return {"number": trial.number, "sampled": trial.sampled}


def make_searcher(sampler: Sampler, ledger: Ledger, settings_of: SettingsOf, budget: TimeBudget) -> Any:
    """What Ray Tune asks for trials, and tells how each ended."""
    from ray.tune.search import Searcher

    coming = next_trials(ledger, sampler, budget)
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
            trial = known[trial_id]
            # A trial records by itself that it trained to its end, or cannot; otherwise it is being stopped.
            state = trial.state if trial.ended is not None else TrialState.STOPPED
            state = TrialState.FAILED if error else state
            sampler.tell(trial, outcome_of(trial, state, settings_of))

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
    config: SweepConfig,
    sampler: Sampler,
    ledger: Ledger,
    settings_of: SettingsOf,
    budget: TimeBudget,
    remaining: int,
) -> TrialSource:
    """Where the remaining trials of a sweep come from.

    Population-based training takes no searcher: its whole population is made beforehand, and taken once.
    """
    from ray import tune

    if config.scheduler.name != "pbt":
        return TrialSource(remaining, make_searcher(sampler, ledger, settings_of, budget), {})
    points = [point_of(trial) for trial in next_trials(ledger, sampler, budget)]
    return TrialSource(1, None, {"point": tune.grid_search(points)})
