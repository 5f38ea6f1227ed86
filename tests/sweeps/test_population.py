"""Which states of a population may be deleted: none that a trial may still continue from."""

from __future__ import annotations

import random
from pathlib import Path

from headway.sweeps.ledger import Trial
from headway.sweeps.population import PopulationStates, state_path


def trials(number: int) -> list[Trial]:
    return [Trial(Path(f"{index:05d}")) for index in range(number)]


def test_a_state_goes_once_all_have_reported_after_a_newer_one_took_its_place():
    states, (a, b) = PopulationStates(), trials(2)
    assert states.reported(a, 1) == []
    assert states.reported(b, 1) == []
    # b may have been told to continue from a's first state, and reads it when it begins again.
    assert states.reported(a, 2) == []
    assert states.reported(b, 2) == [state_path(a, 1)]
    assert states.reported(a, 3) == [state_path(b, 1)]


def test_the_last_state_of_a_trial_stays_until_all_have_reported_after_its_end():
    states, (a, b) = PopulationStates(), trials(2)
    states.reported(a, 1)
    states.reported(b, 1)
    assert states.ended(a) == []
    assert states.reported(b, 2) == [state_path(a, 1), state_path(b, 1)]
    assert states.ended(b) == [state_path(b, 2)]


def test_a_trial_that_was_set_back_keeps_the_state_it_comes_by_again():
    states, (a, b) = PopulationStates(), trials(2)
    for step in (1, 2):
        states.reported(a, step)
    states.reported(b, 1)
    # It continues from b's first state, and comes by step 2 again.
    assert state_path(a, 2) not in states.reported(a, 2)
    assert state_path(a, 2) not in states.reported(b, 2)
    gone = [path for step in (3, 4) for path in (*states.reported(a, step), *states.reported(b, step))]
    assert state_path(a, 2) in gone
    assert state_path(a, 4) not in gone


def test_in_any_order_of_reports_no_state_goes_that_is_still_to_be_read():
    """Whoever reports may be told to continue from another's newest state, as in population training."""
    rng = random.Random(0)
    for _ in range(50):
        states, population = PopulationStates(), trials(5)
        steps = dict.fromkeys(population, 0)
        newest: dict[Trial, Path] = {}
        to_read: dict[Trial, Path] = {}
        for _ in range(100):
            trial = rng.choice(population)
            to_read.pop(trial, None)  # it has begun again since
            if trial in newest and rng.random() < 0.3:
                steps[trial] = rng.choice(list(steps.values()))
            steps[trial] += 1
            others = [state for other, state in newest.items() if other != trial]
            if others and rng.random() < 0.5:
                to_read[trial] = rng.choice(others)
            newest[trial] = state_path(trial, steps[trial])
            gone = states.reported(trial, steps[trial])
            assert not set(gone) & {*to_read.values(), *newest.values()}
        assert len(states._replaced) < 60, "they pile up"
