"""A trial of a sweep on a group of Ray Train's workers, which the trial's actor starts and follows.

The actor itself reserves no core: the group's placement group accounts for all that the trial uses. The actor
reads what the workers measure from the journal, like that of any training run. Ray's own callback from Train
to Tune would bring the same measurements, but carries nothing back: a trial that the scheduler stops has to
stop its group, too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from headway.cluster.worker_group import WorkerResources, train_on_workers
from headway.engine.parallel.worker import Worker
from headway.runs.journal import Journal, JournalReader
from headway.runs.paths import RunPaths
from headway.sweeps.ledger import Trial
from headway.sweeps.trial_worker import Report, TrialSpec, train_trial

_POLL_SECONDS = 0.3


def train_on_group(spec: TrialSpec, resources: WorkerResources, report: Report) -> None:
    """Train a trial on its workers, and report all that they measure.

    The workers keep training while an evaluation is judged. If `report` raises, as it does when the scheduler
    stops the trial, they stop after the current step, and this function returns only once they are gone.

    Args:
        spec: what is trained.
        resources: of each worker.
        report: receives all that is measured, in order; it ignores what it has received before.

    Raises:
        RuntimeError: a worker died; the trial restarts from its newest state.
        SystemExit: the scheduler stops the trial.
    """
    paths = spec.paths
    paths.stop_sign.unlink(missing_ok=True)
    # Drops what this trial will measure again, so that it is not reported twice.
    Journal(paths.journal, paths.newest_state())
    reader = JournalReader(paths.journal)

    def report_new() -> None:
        for entry in reader.unread():
            report(entry.step, entry.metrics)

    with ThreadPoolExecutor(1, thread_name_prefix="headway-group") as thread:
        group = thread.submit(_fit, spec, resources)
        try:
            while not group.done():
                wait([group], timeout=_POLL_SECONDS)
                report_new()
            report_new()
        except BaseException:
            paths.stop_sign.touch()
            raise
    group.result()


def _fit(spec: TrialSpec, resources: WorkerResources) -> None:
    workers = spec.job.config.workers
    group_file = _group_file(spec.trial)
    _free_leftover_group(group_file)
    group_file.touch()
    try:
        train_on_workers(_train_member, (spec,), workers, spec.trial.folder, lambda: 0, resources, retries=0)
    finally:
        group_file.unlink(missing_ok=True)


def _group_file(trial: Trial) -> Path:
    """A file that exists while the trial has a group, with the id of its placement group."""
    return trial.folder / "group"


def _train_member(spec: TrialSpec, worker: Worker, launched_at: float) -> None:
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    if worker.rank == 0 and group is not None:
        _group_file(spec.trial).write_text(group.id.hex())
    train_trial(spec, worker, launched_at)


def _free_leftover_group(group_file: Path) -> None:
    """Free what a group still reserves whose actor was killed; the restarted trial needs it.

    Ray frees it only when the whole job ends, and Ray Train's cleaner needs the dashboard.
    """
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if group_file.exists() and (group_id := group_file.read_text()):
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group_id)))


def free_group(trial: Trial) -> None:
    """Free what the group of a trial that has ended still reserves; a no-op without a group. Does not wait.

    Ray Tune may end the actor of a stopped trial without waiting for the group that it started. A stopped
    trial has nothing left to save, so its workers need not come to the end of their step.
    """
    group_file = _group_file(trial)
    if group_file.exists():
        RunPaths.at(trial.folder).stop_sign.touch()
        _free_leftover_group(group_file)
