"""The sampler proposes what Optuna itself suggests for the seed of the trial."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest

from headway.config.finetune import FinetuneConfig
from headway.config.sweep import SweepConfig
from headway.data.sampling import derived_seed
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.search.sampler import Sampler
from headway.sweeps.search.space import parse_search
from headway.sweeps.winner import Outcome


def sampler_of(**more: Any) -> Sampler:
    base = {"model": "m", "task": {"source": "s"}, "search": {"x": "uniform(0.0, 1.0)"}, "seed": 7}
    config = SweepConfig.model_validate(base | more)
    return Sampler(config, parse_search(config.search, FinetuneConfig), ["accuracy"])


@pytest.mark.parametrize(
    ("written", "suggest"),
    [
        ("uniform(0.5, 2.0)", lambda trial: trial.suggest_float("x", 0.5, 2.0)),
        ("loguniform(1e-5, 0.1)", lambda trial: trial.suggest_float("x", 1e-5, 0.1, log=True)),
        ("quniform(0.0, 1.0, 0.25)", lambda trial: trial.suggest_float("x", 0.0, 1.0, step=0.25)),
        ("randint(3, 10)", lambda trial: trial.suggest_int("x", 3, 9)),
        ("lograndint(2, 65)", lambda trial: trial.suggest_int("x", 2, 64, log=True)),
        ("qrandint(8, 64, 8)", lambda trial: trial.suggest_int("x", 8, 64, step=8)),
        # Optuna has no steps with logarithms: the nearest multiple.
        (
            "qloguniform(0.5, 8.0, 0.5)",
            lambda trial: round(trial.suggest_float("x", 0.5, 8.0, log=True) * 2) / 2,
        ),
        ("qlograndint(8, 256, 8)", lambda trial: round(trial.suggest_int("x", 8, 256, log=True) / 8) * 8),
        ("choice(a, b, c)", lambda trial: "abc"[trial.suggest_categorical("x", range(3))]),
    ],
)
def test_what_is_drawn_is_what_optuna_draws(written: str, suggest: Callable[[optuna.Trial], Any]) -> None:
    sampler, expected = sampler_of(algorithm="random", search={"x": written}), []
    for number in range(12):
        theirs = optuna.samplers.RandomSampler(seed=derived_seed(7, number))
        expected.append({"x": suggest(optuna.create_study(sampler=theirs).ask())})
    assert [sampler.propose(number) for number in range(12)] == expected


@pytest.mark.parametrize(
    ("samples", "random"), [(2, 2), (11, 2), (12, 3), (39, 9), (40, 10), (44, 10), (400, 10)]
)
def test_tpe_draws_a_quarter_of_the_trials_at_random_but_two_at_least_and_ten_at_most(
    samples, random, tmp_path
):
    ledger, is_random = Ledger(tmp_path), []
    tpe, drawn = (sampler_of(algorithm=algorithm, samples=samples) for algorithm in ("tpe", "random"))
    for number in range(random + 1):
        trial = ledger.new(tpe.propose(number))
        is_random.append(trial.sampled == drawn.propose(number))
        tpe.tell(trial, Outcome(TrialState.DONE, {"accuracy": trial.sampled["x"]}, 1))
    assert is_random == [True] * random + [False]
