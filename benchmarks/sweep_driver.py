"""What a sweep of 1,000 trials costs its driver: a simulated one, whose trials sleep instead of training.

    python benchmarks/sweep_driver.py                           # about 8 minutes on 2 cores
    python benchmarks/sweep_driver.py --trials 100 --seconds 5  # a short form

Everything but the training is real: `run_sweep`, Ray Tune with its actors, the journals, the ledger, MLflow
(SQLite, in the driver's own process), the leaderboard. Ray is told that the machine has a core for each trial
that runs at once. A trial sleeps, notes in its journal what it would have measured, reports its rounds, and
writes a model of a few bytes. No trial is stopped early, so all report all of their rounds.

- `driver_share`: of the sweep's seconds, those in which Ray Tune's loop, and so any trial with something to
  report, waited for Headway: for its callback or its searcher. The target is 0.05.
- `core_share`: seconds of a core that the driver's process used, in all threads, by the sweep's seconds.
- `idle_share`: of the time that all places for trials had together, what no trial used: actors that start or
  are given the next trial. On 2 cores, the processes of all trials compete for them when they start.
- `mlflow_calls`: calls of MLflow's client, by name; a trial needs at least one to begin and one to end.
- `models_at_most`: models that lay in the folder at once; those that cannot win any longer are deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock


class CountedClient:
    """MLflow's client, with its calls counted by name."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        called = getattr(self._client, name)
        if not callable(called):
            return called

        def count(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return called(*arguments, **named)

        return count


class LoopTime:
    """Seconds that Ray Tune's loop spends in methods of Headway's callback and searcher."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, instance: Any) -> Any:
        """Have every public method of the instance timed."""
        for name in dir(instance):
            method = getattr(instance, name)
            if name.startswith(("on_", "suggest")) and callable(method):
                setattr(instance, name, self._timed(method))
        return instance

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class ModelCount:
    """Looks every half a second how many trials have a model, until it is told to end."""

    def __init__(self, folder: Path) -> None:
        self.at_most = 0
        self._folder = folder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> ModelCount:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.5):
            self.at_most = max(self.at_most, sum(1 for _ in self._folder.glob("*/model")))


def idle_share(trials: Path, at_once: int, wall: float) -> float:
    """Of the time that all places for trials had together, what no trial used."""
    from headway.runs.journal import read_journal

    busy = 0.0
    for path in trials.glob("*/journal.jsonl"):
        times = [entry.time / 1000 for entry in read_journal(path)]
        # The first entry is made when half of the first of the rounds' sleep is over.
        rounds = len(times) // 2
        busy += (times[-1] - times[0]) * (rounds / max(1, rounds - 1))
    return 1.0 - busy / (at_once * wall)


def simulate(runs: Path, trials: int, at_once: int, seconds: float, reports: int) -> dict[str, Any]:
    """Run the sweep in this process, and measure it; Ray must not have been started."""
    os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": at_once})
    from lib.sleeping_trials import sleeping, sleeping_sweep

    from headway.cluster import connect
    from headway.display import Display
    from headway.runs.context import Context
    from headway.steps import sweep
    from headway.tracking import Tracking

    config = sleeping_sweep(runs, samples=trials, reports=reports, concurrency=at_once)
    folder = runs / "sweep"
    folder.mkdir()
    context = Context("sweep", "sweep", runs, folder, Tracking.at(runs), Display(quiet=True))
    client = CountedClient(context.tracking.client)
    vars(context.tracking)["client"] = client
    loop = LoopTime()
    make_source, make_callback = sweep.trial_source, sweep.Leaderboard.callback

    def source(*arguments: Any) -> Any:
        found = make_source(*arguments)
        loop.watch(found.searcher)
        return found

    connect.connect(None, context.tracking.uri)
    with (
        sleeping(seconds),
        mock.patch.object(sweep, "trial_source", source),
        mock.patch.object(sweep.Leaderboard, "callback", lambda board: loop.watch(make_callback(board))),
        ModelCount(folder / "trials") as models,
    ):
        began, used = time.perf_counter(), time.process_time()
        result = sweep.run_sweep(config, context)
        wall, cpu = time.perf_counter() - began, time.process_time() - used
    return {
        "trials": result.summary["trials"],
        "at_once": at_once,
        "results": trials * reports,
        "wall_seconds": round(wall, 1),
        "driver_share": round(loop.seconds / wall, 4),
        "core_share": round(cpu / wall, 4),
        "idle_share": round(idle_share(folder / "trials", at_once, wall), 4),
        "models_at_most": models.at_most,
        "mlflow_calls": dict(client.calls.most_common()),
        "mlflow_calls_per_trial": round(client.calls.total() / trials, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20.0, help="that a trial sleeps")
    parser.add_argument("--reports", type=int, default=6, help="of each trial")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="headway-benchmark-") as folder:
        found = simulate(Path(folder), options.trials, options.at_once, options.seconds, options.reports)
    for name, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{call} {number}" for call, number in value.items())
        print(f"{name:<24} {value}")
    print(json.dumps({"benchmark": "sweep_driver", **found}))


if __name__ == "__main__":
    main()
