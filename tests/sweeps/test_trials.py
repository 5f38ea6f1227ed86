"""A trial in its Tune actor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from headway.cluster.worker_group import WorkerResources
from headway.sweeps.ledger import Ledger, TrialState
from headway.sweeps.trials import TrialSettings, run_trial


@pytest.mark.parametrize("ending", [TrialState.DONE, TrialState.FAILED])
def test_a_trial_whose_end_is_recorded_trains_no_more(ending, tmp_path, monkeypatch):
    """Its process died between the record and the last report, and Ray Tune starts it again."""
    trial = Ledger(tmp_path).new({"batch_size": 8})
    trial.end(ending)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "a"))
    settings = TrialSettings(tmp_path, WorkerResources(1, 0.0, True), 4, None, saves_states=True)
    nothing_to_train: Any = None
    run_trial({"point": {"number": 0, "sampled": {"batch_size": 16}}}, nothing_to_train, settings)
    assert trial.sampled == {"batch_size": 8}
    assert trial.state is ending
