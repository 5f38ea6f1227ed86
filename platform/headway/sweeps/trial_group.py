"""A trial of a sweep on a group of Ray Train's workers, which the trial's actor starts and follows.

The actor holds no core itself: the group's placement group counts all that the trial uses. What the workers
measure comes by the journal, like that of any training run; Ray's own callback from Train to Tune would bring
the same, but nothing back: a trial that the scheduler stops has to stop its group, too.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from headway.cluster.worker_group import Share, train_on_workers
from headway.engine.parallel.worker import Worker
from headway.runs.journal import Journal, JournalReader
from headway.runs.paths import RunPaths
from headway.sweeps.ledger import Trial
from headway.sweeps.population import step_of
from headway.sweeps.trial_worker import HandOn, Part, train_part

_POLL_SECONDS = 0.3
_MOST_SECONDS_TO_END = 60.0


def train_on_group(part: Part, share: Share, hand_on: HandOn) -> None:
    """Train a trial on its workers, telling of all they measure.

    The workers go on while an evaluation is judged. When `hand_on` raises, as it does when the scheduler
    stops the trial, they stop after the step they are in, and this ends only once they are gone.

    Args:
        part: what is trained.
        share: of each worker.
        hand_on: is told of all that is measured, in order; it passes over what it knows.

    Raises:
        RuntimeError: a worker died; the trial starts from scratch.
        SystemExit: the scheduler stops the trial.
    """
    place = part.place
    place.stop_sign.unlink(missing_ok=True)
    # What an earlier start of this trial measured is no news.
    Journal(place.journal, step_of(part.start))
    reader = JournalReader(place.journal)

    def tell() -> None:
        for entry in reader.unread():
            hand_on(entry.step, entry.metrics)

    with ThreadPoolExecutor(1, thread_name_prefix="headway-group") as thread:
        group = thread.submit(_fit, part, share)
        try:
            while not group.done():
                wait([group], timeout=_POLL_SECONDS)
                tell()
            tell()
        except BaseException:
            place.stop_sign.touch()
            raise
    group.result()


def _fit(part: Part, share: Share) -> None:
    workers = part.job.config.workers
    is_up = _mark(part.trial)
    _give_back_what_is_left(is_up)
    is_up.touch()
    try:
        train_on_workers(_train_member, (part,), workers, part.trial.folder, lambda: 0, share, retries=0)
    finally:
        is_up.unlink(missing_ok=True)


def _mark(trial: Trial) -> Path:
    """A file that is there while the trial has a group; its first worker writes there what that reserves."""
    return trial.folder / "group"


def _train_member(part: Part, worker: Worker, launched_at: float) -> None:
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if worker.rank == 0 and group is not None:
        _mark(part.trial).write_text(group.id.hex())
    train_part(part, worker, launched_at)


def _give_back_what_is_left(mark: Path) -> None:
    """Free what a group reserved whose trial's actor was killed; the trial starts again, and needs it.

    Ray frees it with the whole job only, and Ray Train's cleaner needs the dashboard.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if mark.exists() and (reserved := mark.read_text()):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(reserved)))


def end_group(trial: Trial) -> None:
    """Have the group of a trial that the scheduler stops end, and wait until it has; nothing without one.

    Ray Tune ends the actor of a stopped trial without waiting for what it started. The group's resources
    would then never be given back where Ray runs without its dashboard, which Ray Train's cleaner asks.
    """
    deadline = time.monotonic() + _MOST_SECONDS_TO_END
    while _mark(trial).exists() and time.monotonic() < deadline:
        RunPaths.at(trial.folder).stop_sign.touch()
        time.sleep(_POLL_SECONDS / 3)
