"""Population-based training (Jaderberg et al. 2017) with Ray Tune: bad trials continue from good ones.

Ray decides who continues from whom; how settings then change is decided here, so that they stay in the search
space. All of it depends on the sweep's seed, the trial and its round alone.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

from headway.config.sweep import PbtConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger
from headway.sweeps.search.domain import Domain, Range
from headway.sweeps.search.space import Space, assign

_CHANGEABLE = (
    "attention_dropout",
    "batch_size",
    "class_weights",
    "dropout",
    "label_smoothing",
    "lora.alpha",
    "lora.dropout",
    "masking",
    "max_grad_norm",
    "optimizer",
    "schedule",
)
"""Settings, and groups of them, that a trial can change while it trains: weights and steps stay the same."""


def can_change(path: str) -> bool:
    """Whether population-based training can search a setting, though its trials share their weights."""
    return any(path == name or path.startswith(f"{name}.") for name in _CHANGEABLE)


def changed(space: Space, sampled: dict[str, Any], config: PbtConfig, rng: Any = random) -> dict[str, Any]:
    """Values for a trial that continues from one with the values `sampled`: near them, or drawn again.

    Args:
        space: what is searched.
        sampled: the values of the trial that is cloned.
        config: how much changes.
        rng: a `random.Random`, or the module itself.
    """

    def draw(path: str, domain: Domain) -> Any:
        if path not in sampled or rng.random() < config.resample_probability:
            return domain.at(rng.random()) if isinstance(domain, Range) else rng.choice(domain)
        if isinstance(domain, Range):
            return domain.scaled(sampled[path], rng.choice(config.perturbation_factors))
        index = domain.index(sampled[path]) + rng.choice((-1, 1))
        return domain[min(max(index, 0), len(domain) - 1)]

    return assign(space, {}, draw)


def make_pbt(config: PbtConfig, seed: int, space: Space, ledger: Ledger, **common: Any) -> Any:
    """Ray Tune's scheduler; `common` are the arguments that all of Ray's schedulers take."""
    from ray.tune import schedulers

    class Population(schedulers.PopulationBasedTraining):
        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
            member = ledger.known_as(trial.trial_id, trial.config["point"]["number"])
            if member.ended is not None:
                # Its model is saved and measured: cloned now, it would train on under its figures.
                return self.CONTINUE
            with _random_from(derived_seed(seed, member.number, result["round"])):
                return super().on_trial_result(controller, trial, result)

    def explore(cloned: dict[str, Any]) -> dict[str, Any]:
        point = cloned["point"]
        # Ray Tune copies the config of the trial that is cloned before it calls this.
        return cloned | {"point": point | {"sampled": changed(space, point["sampled"], config)}}

    return Population(
        **common,
        perturbation_interval=config.perturbation_interval,
        quantile_fraction=config.quantile_fraction,
        custom_explore_fn=explore,
        log_config=False,
    )


@contextlib.contextmanager
def _random_from(seed: int) -> Iterator[None]:
    """Within the block, `random`, from which Ray draws the trial to clone, depends on a seed alone."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
