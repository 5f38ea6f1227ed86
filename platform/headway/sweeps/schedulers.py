"""Ray Tune's schedulers, which stop trials; restarting the driver does not change which ones.

A scheduler is not restored from a file: it is told again what the ledger holds, which is the only record.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from headway.cluster import ray_internals
from headway.config.sweep import (
    AshaConfig,
    HyperbandConfig,
    MedianConfig,
    PbtConfig,
    SuccessiveHalving,
    SweepConfig,
)
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger, Trial
from headway.sweeps.pbt import make_pbt
from headway.sweeps.search.sampler import Sampler, point_of
from headway.sweeps.search.space import Space
from headway.sweeps.winner import SettingsOf, outcome_of

_MAX_ROUNDS = 2**16
"""Beyond the rounds of any trial: trials end by themselves, and this only says how many rungs there are."""


def make_scheduler(config: SweepConfig, space: Space, ledger: Ledger, metric: str, mode: str) -> Any:
    """The configured scheduler of Ray Tune; it counts a trial's time in rounds."""
    from ray.tune import schedulers

    common = {"time_attr": "round", "metric": metric, "mode": mode}
    match config.scheduler:
        case AshaConfig() as asha:
            return schedulers.ASHAScheduler(**common, **_halving(asha))
        case HyperbandConfig() as hyperband:
            bracketed = _bracketed(hyperband, config.seed)
            return bracketed(**common, **_halving(hyperband), brackets=hyperband.brackets)
        case MedianConfig() as median:
            return _median_rule()(
                **common, grace_period=median.grace_period, min_samples_required=median.min_samples_required
            )
        case PbtConfig() as pbt:
            return make_pbt(pbt, config.seed, space, ledger, **common)
        case _:
            return schedulers.FIFOScheduler()


def rung_steps(config: SuccessiveHalving, steps_per_round: int, total_steps: int) -> tuple[int, ...]:
    """The steps at which successive halving judges a trial before its end."""
    steps = []
    step = config.grace_period * steps_per_round
    while step < total_steps:
        steps.append(step)
        step *= config.reduction_factor
    return tuple(steps)


def _halving(config: SuccessiveHalving) -> dict[str, int]:
    return {
        "max_t": max(_MAX_ROUNDS, config.grace_period),
        "grace_period": config.grace_period,
        "reduction_factor": config.reduction_factor,
    }


def _median_rule() -> Any:
    """Ray Tune's rule, except that it pauses no trial to let others run: Headway's would begin again."""
    from ray.tune import schedulers

    class MedianRule(schedulers.MedianStoppingRule):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            decision = super().on_trial_result(controller, trial, result)
            return self.CONTINUE if decision == self.PAUSE else decision

    return MedianRule


def _bracketed(config: HyperbandConfig, seed: int) -> Any:
    """ASHA that assigns a trial to a bracket by its number, so that a restart assigns it the same."""
    from ray.tune import schedulers

    class Bracketed(schedulers.ASHAScheduler):
        def on_trial_add(self, controller: Any, trial: Any) -> None:
            # Li et al. 2018, "Hyperband": the sooner a bracket stops trials, the more begin in it.
            weights = np.asarray(
                [float(config.reduction_factor) ** -bracket for bracket in range(config.brackets)]
            )
            rng = np.random.default_rng(derived_seed(seed, trial.config["point"]["number"]))
            bracket = rng.choice(config.brackets, p=weights / weights.sum())
            if not ray_internals.put_in_bracket(self, trial, int(bracket)):
                super().on_trial_add(controller, trial)

    return Bracketed


def replay(
    trials: list[Trial], scheduler: Any, sampler: Sampler, config: SweepConfig, settings_of: SettingsOf
) -> None:
    """Tell a new sampler and scheduler what an earlier driver knew of the trials it began."""
    for trial in trials:
        sampler.begin(trial)
        if trial.ended is None:
            continue
        sampler.tell(trial, outcome_of(trial, trial.ended.state, settings_of))
        if measured := trial.evaluations():
            results = [{"round": trial.round_of(entry.step), **entry.metrics} for entry in measured]
            _replay(trial, results, scheduler, config)


def _replay(trial: Trial, results: list[dict[str, Any]], scheduler: Any, config: SweepConfig) -> None:
    replayed = _ReplayedTrial(trial_id=f"earlier-{trial.number}", config={"point": point_of(trial)})
    if isinstance(config.scheduler, SuccessiveHalving):
        scheduler.on_trial_add(None, replayed)
        for result in results:
            scheduler.on_trial_result(None, replayed, result)
    elif isinstance(config.scheduler, MedianConfig):
        # Ray Tune gives the rule the last result again when a trial ends.
        for result in [*results, results[-1]]:
            scheduler.on_trial_complete(None, replayed, result)


class _ReplayedTrial(SimpleNamespace):
    """An earlier trial as a scheduler sees it; hashable, since the scheduler keeps it in dictionaries."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.trial_id)
