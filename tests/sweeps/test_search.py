"""Where the trials of a sweep come from."""

from __future__ import annotations

import pytest

from headway.config.sweep import SweepConfig
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.search import Sampler, trial_source
from headway.sweeps.space import parse_search


@pytest.mark.parametrize(("scheduler", "once"), [("fifo", False), ("asha", False), ("pbt", True)])
@pytest.mark.parametrize("ended", [0, 2])
def test_ray_tune_takes_every_remaining_trial_once(scheduler, once, ended, tmp_path):
    config = SweepConfig.model_validate(
        {
            "model": "m",
            "task": {"source": "s"},
            "search": {"optimizer.learning_rate": "loguniform(1e-3, 6e-3)"},
            "samples": 5,
            "scheduler": scheduler,
        }
    )
    ledger, sampler = Ledger(tmp_path), Sampler(config, parse_search(config.search), "max")
    for number in range(ended):
        ledger.new(sampler.propose(number)).end(TrialState.DONE)
    source = trial_source(config, sampler, ledger, ["accuracy"], remaining=5 - ended)
    if once:
        # The whole population is made beforehand: taken more than once, each member would train again.
        points = source.param_space["point"]["grid_search"]
        assert (source.num_samples, source.searcher) == (1, None)
        assert [point["number"] for point in points] == list(range(ended, 5))
    else:
        numbers = [source.searcher.suggest(str(i))["point"]["number"] for i in range(source.num_samples)]
        assert numbers == list(range(ended, 5))
        assert source.searcher.suggest("none is left") == source.searcher.FINISHED
