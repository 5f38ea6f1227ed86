"""Ray Tune's schedulers, which stop trials; restarting the driver does not change which ones.

A scheduler is not restored from a file: it is told again what the ledger holds, which is the only record.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from headway.cluster import ray_internals
from headway.config.sweep import SweepConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Trial
from headway.sweeps.search import Sampler, point_of
from headway.sweeps.space import Domain, Range

_REDUCTION = 3
"""Of the trials that reach a rung, one in this many continues; rungs are at its powers, in rounds (Li et al.
2020, "ASHA")."""
SUCCESSIVE_HALVING = ("asha", "hyperband")
"""Schedulers that judge a trial only at its rungs."""
_MAX_ROUNDS = 2**16
_BRACKETS = 2
"""For `hyperband`: one stops trials from the first evaluation on, the other from the third."""


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
    """Tell a new sampler and scheduler about the trials that ended before a restart of the driver."""
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
