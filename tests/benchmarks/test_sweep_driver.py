"""A small form of the simulated sweep: what a driver does for its trials, in numbers of calls and files."""

from __future__ import annotations

from sweep_driver import simulate


def test_calls_to_mlflow_do_not_grow_with_results_and_few_models_are_kept(ray_cluster, tmp_path):
    reports, trials = 20, 4
    found = simulate(tmp_path, trials=trials, at_once=2, seconds=1.0, reports=reports)
    assert (found["trials"], found["results"]) == (trials, trials * reports)
    calls = found["mlflow_calls"]
    # A trial's run begins, gets its settings, what was measured in a few calls, and ends.
    assert (calls["create_run"], calls["set_terminated"]) == (1 + trials, 1 + trials)
    assert calls["log_batch"] < trials * reports / 2
    # The best so far, those that are still being written, and the one that is deleted at that moment.
    assert found["models_at_most"] <= 4
