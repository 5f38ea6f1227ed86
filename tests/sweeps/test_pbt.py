"""Population-based training: who is cloned, how settings change, what a trial continues from."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial as TuneTrial

from headway.config.finetune import FinetuneConfig
from headway.config.sweep import PbtConfig, SweepConfig
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.pbt import changed
from headway.sweeps.population import adopt_state, newest_state, state_path, step_of
from headway.sweeps.schedulers import make_scheduler
from headway.sweeps.search.space import Space, parse_search

RATE = "optimizer.learning_rate"
SEARCH = {
    RATE: "loguniform(1e-4, 1e-3)",
    "batch_size": "uniform(8, 64)",
    "schedule.name": ["linear", "wsd"],
    "schedule.decay": {"values": "quniform(0.1, 0.5, 0.1)", "when": {"schedule.name": "wsd"}},
}


def space_of(search: Any) -> Space:
    config = SweepConfig.model_validate({"model": "m", "task": {"source": "s"}, "search": search})
    return parse_search(config.search, FinetuneConfig)


def test_settings_change_within_their_bounds_to_values_that_they_may_have():
    space, config, rng = space_of(SEARCH), PbtConfig(), random.Random(0)
    sampled: dict[str, Any] = {RATE: 9e-4, "batch_size": 60, "schedule.name": "linear"}
    seen: list[dict[str, Any]] = []
    for _ in range(300):
        sampled = changed(space, sampled, config, rng)
        seen.append(sampled)
        assert all(value in space[path].domain for path, value in sampled.items())
        assert ("schedule.decay" in sampled) == (sampled["schedule.name"] == "wsd")
        assert isinstance(sampled["batch_size"], int)
    assert max(values[RATE] for values in seen) == 1e-3
    assert {values["batch_size"] for values in seen} >= {8, 64}


def test_settings_change_by_the_factors_unless_drawn_again():
    space = space_of({RATE: "loguniform(1e-9, 1e9)", "batch_size": [8, 16, 32, 64]})
    config = PbtConfig(resample_probability=0.0, perturbation_factors=(2.0, 0.5))
    found = [changed(space, {RATE: 1.0, "batch_size": 16}, config, random.Random(i)) for i in range(40)]
    assert {values[RATE] for values in found} == {2.0, 0.5}
    assert {values["batch_size"] for values in found} == {8, 32}
    config = PbtConfig(resample_probability=1.0)
    found = [changed(space, {RATE: 1.0, "batch_size": 16}, config, random.Random(i)) for i in range(40)]
    assert len({values[RATE] for values in found}) == 40
    assert {values["batch_size"] for values in found} == {8, 16, 32, 64}


class Controller:
    """As much of Ray Tune's controller as its scheduler asks for; remembers who was cloned."""

    search_alg = None

    def __init__(self) -> None:
        self.trials: list[TuneTrial] = []
        self.paused: list[TuneTrial] = []

    def get_trials(self) -> list[TuneTrial]:
        return self.trials

    def pause_trial(self, trial: TuneTrial, should_checkpoint: bool) -> None:
        self.paused.append(trial)

    def _schedule_trial_save(self, trial: TuneTrial, result: Any) -> Any:
        return SimpleNamespace(path=trial.trial_id)


def population(tmp_path, seed: int = 0, **pbt: Any) -> tuple[Controller, Ledger, Any]:
    """Four trials that run, each with a checkpoint as soon as it is among the best."""
    config = SweepConfig.model_validate(
        {
            "model": "m",
            "task": {"source": "s"},
            "search": SEARCH,
            "scheduler": {"name": "pbt", "quantile_fraction": 0.5} | pbt,
            "seed": seed,
        }
    )
    ledger, controller = Ledger(tmp_path), Controller()
    scheduler = make_scheduler(config, space_of(SEARCH), ledger, "accuracy", "max")
    for number in range(4):
        sampled = {RATE: 1e-4 * (number + 1), "batch_size": 16, "schedule.name": "linear"}
        ledger.new(sampled)
        trial = TuneTrial("run", trial_id=f"t{number}", stub=True)
        trial.config = {"point": {"number": number, "sampled": sampled}}
        trial.status = TuneTrial.RUNNING
        controller.trials.append(trial)
        scheduler.on_trial_add(controller, trial)
    return controller, ledger, scheduler


def round_of(controller: Controller, scheduler: Any, number: int) -> list[str]:
    """All four report, the later the worse."""
    return [
        scheduler.on_trial_result(controller, trial, {"round": number, "accuracy": 1 - index / 10})
        for index, trial in enumerate(controller.trials)
    ]


def test_a_bad_trial_continues_from_a_good_one(tmp_path):
    controller, _, scheduler = population(tmp_path)
    round_of(controller, scheduler, 1)
    round_of(controller, scheduler, 2)
    assert [trial.trial_id for trial in controller.paused] == ["t2", "t3"]
    assert {trial.config["point"]["number"] for trial in controller.trials[2:]} <= {0, 1}


def test_a_trial_whose_model_is_saved_is_neither_cloned_over_nor_paused(tmp_path):
    """Its last report comes after its end: what trained on would not be what was measured."""
    controller, ledger, scheduler = population(tmp_path)
    for trial in ledger.trials():
        trial.end(TrialState.DONE)
    before = [trial.config for trial in controller.trials]
    round_of(controller, scheduler, 5)
    controller.trials[0].status = TuneTrial.PAUSED
    assert round_of(controller, scheduler, 6) == ["CONTINUE"] * 4
    assert controller.paused == []
    assert [trial.config for trial in controller.trials] == before


@pytest.mark.parametrize("disturbed", [False, True])
def test_the_seed_decides_who_is_cloned_and_how_settings_change(disturbed, tmp_path):
    def cloned(folder: str, seed: int) -> list[Any]:
        controller, _, scheduler = population(tmp_path / folder, seed)
        for number in range(1, 5):
            if disturbed:
                random.seed(folder)  # whatever else the driver drew
            round_of(controller, scheduler, number)
        return [trial.config for trial in controller.trials]

    state = random.getstate()
    assert cloned("a", 1) == cloned("b", 1)
    assert cloned("c", 1) != cloned("d", 2)
    if not disturbed:
        assert random.getstate() == state


def test_a_trial_continues_from_what_it_adopted_last_not_from_its_longest_training(tmp_path):
    """A clone of a slower trial falls back in steps; if its driver dies then, its own states are old."""
    ledger = Ledger(tmp_path)
    slow, fast = ledger.new({}), ledger.new({})
    assert newest_state(fast) is None

    def save(trial, step: int, text: str) -> None:
        path = state_path(trial, step)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        (path.parent / "newest").write_text(path.name)

    save(slow, 3, "slow 3")
    save(fast, 3, "fast 3")
    save(fast, 5, "fast 5")
    assert newest_state(fast) == state_path(fast, 5)
    adopted = adopt_state(fast, state_path(slow, 3))
    found = newest_state(fast)
    assert found == adopted and step_of(found) == 3
    assert found.read_text() == "slow 3"
    # Another trial may still be about to clone the state that the trial had of that step.
    assert state_path(fast, 3).read_text() == "fast 3"
    # It does not depend on the other trial, whose states are deleted when it ends.
    state_path(slow, 3).unlink()
    assert found.read_text() == "slow 3"
    save(fast, 4, "fast 4")
    assert newest_state(fast) == state_path(fast, 4)
    assert adopt_state(fast, state_path(fast, 4)) == state_path(fast, 4)
