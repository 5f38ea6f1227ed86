"""Save and restore what a stopped run needs to continue as if it had not been stopped.

Batches and random numbers are functions of (seed, step), so a state consists of the weights, the optimizer's
state, the step, and the metrics since the last report. Every worker writes its part with
torch.distributed.checkpoint, from a copy and in a thread. A state is complete once it has a manifest, which
is written last and contains the checksums of all other files. So an incomplete state is never used, on any
storage.

Storage may fail for a while: a state is written again after a pause, then given up with a warning. Only
several in a row end a run. All workers learn how each attempt ended, so they count alike.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from headway.engine.checkpoint.saved_states import SavedStates, step_of
from headway.engine.checkpoint.state_dict import load_optimizer, part_of_copies, training_state
from headway.engine.checkpoint.storage import CheckedReader, CheckedWriter, Folder
from headway.engine.checkpoint.unpickling import PlainLoadPlanner
from headway.engine.parallel.worker import Worker

_MAX_FAILURES = 3
"""States in a row that could not be saved, after which a run ends: it would lose too much."""

logger = logging.getLogger(__name__)

WorkerState = dict[str, Any]
"""What a worker keeps to itself, as JSON types."""

# torch.distributed.checkpoint warns if a single worker saves alone, which is intended.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class CheckpointError(RuntimeError):
    """A state could not be saved, or not be loaded."""


class Restored(NamedTuple):
    """What a restored state contains besides weights and optimizer.

    Attributes:
        step: how many steps were done; 0 if there is no undamaged state.
        worker_states: what each worker of the group that saved it kept to itself, by rank.
        metric: how good the model was when it was last measured.
        notes: a line for each damaged state.
    """

    step: int = 0
    worker_states: Sequence[WorkerState] = ()
    metric: float | None = None
    notes: Sequence[str] = ()


class Checkpoints:
    """The states of a run, in a folder. Every worker makes one, and all call each method alike.

    Attributes:
        warn: told in a line of each state that could not be saved.
    """

    def __init__(
        self,
        folder: Folder,
        worker: Worker,
        *,
        keep: int = 2,
        keep_best: int = 0,
        pauses: Sequence[float] = (1.0, 4.0),
        min_seconds: float = 0.0,
    ) -> None:
        """Look at the folder.

        Args:
            folder: of the states.
            worker: which of the workers this process is.
            keep: how many of the newest states stay.
            keep_best: how many of the best stay besides.
            pauses: seconds before each further attempt to write a state.
            min_seconds: between two states, and before the first; `save` passes over those that come sooner.
        """
        self.folder = folder
        self.warn: Callable[[str], None] = logger.warning
        self._states = SavedStates(folder)
        self._worker = worker
        self._keep = keep
        self._keep_best = keep_best
        self._pauses = pauses
        # A separate group, since the saving threads communicate while training does too.
        self._group = dist.new_group(backend="gloo") if worker.world_size > 1 else None
        self._is_alone = self._group is None
        # The names are different after each start, so that a dying worker of an earlier start cannot mix its
        # files with ours.
        self._attempt = self._from_first(uuid.uuid4().hex[:8])
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headway-checkpoint")
        on_gpu = worker.device.type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )
        self._in_flight: Future[str | None] | None = None
        self._failures = 0
        self._min_seconds = min_seconds
        self._last_save = time.monotonic()
        self._sound: set[str] = set()
        self._damaged: set[str] = set()

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        worker_state: WorkerState | None = None,
        metric: float | None = None,
    ) -> None:
        """Copy this worker's part of the state after `step` steps and return; a thread writes it.

        Passes over a state that comes too soon. Waits first if the previous state is still being written.

        Args:
            step: how many steps are done.
            model: the module whose parameters and buffers are saved, sharded or not.
            optimizer: of the model's parameters.
            worker_state: what this worker keeps to itself.
            metric: how good the model is, by which the best states are kept; lower is better.

        Raises:
            CheckpointError: several states in a row could not be saved.
        """
        # All workers decide together, but not in the group that the saving threads use meanwhile.
        is_due = time.monotonic() - self._last_save >= self._min_seconds
        if self._min_seconds and not self._worker.any(is_due):
            return
        self._last_save = time.monotonic()
        self.wait()
        state = training_state(model, optimizer)
        if self._worker.mesh is None:
            state = part_of_copies(state, self._worker.rank, self._worker.world_size)
        copied: Any = self._stager.stage(state)
        self._in_flight = self._thread.submit(self._write, step, copied, worker_state or {}, metric)

    def wait(self) -> bool:
        """Return once the state in flight is written or given up; whether it is complete, if there is one.

        Raises:
            CheckpointError: several states in a row could not be saved.
        """
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return True
        problem = in_flight.result()
        if problem is None:
            self._failures = 0
            return True
        self._failures += 1
        if self._failures == _MAX_FAILURES:
            raise CheckpointError(f"{problem}, nor could the {_MAX_FAILURES - 1} before")
        self.warn(f"{problem}; training continues, and the next one will be tried")
        return False

    def restore(self, model: nn.Module, optimizer: Optimizer) -> Restored:
        """Load the newest undamaged state into model and optimizer, whatever layout it was saved with.

        Every file's checksum is verified first. Incomplete states are removed.

        Raises:
            CheckpointError: the state is whole, but not one of this model's, or holds what no state does.
        """
        if self._worker.rank == 0:
            self._states.remove_drafts()
        name, notes = self._newest_sound()
        if name is None:
            return Restored(notes=notes)
        state = training_state(model, optimizer)
        groups = copy.deepcopy(state["optimizer"]["param_groups"])
        # The optimizer has no state for parameters that never had a gradient.
        planner = PlainLoadPlanner(allow_partial_load=True)
        reader = CheckedReader(self.folder, name)
        try:
            dcp.load(
                state,
                storage_reader=reader,
                planner=planner,
                process_group=self._group,
                no_dist=self._is_alone,
            )
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            reason = _reason(error)
            raise CheckpointError(
                f"the state after step {step_of(name)} cannot be loaded: {reason}"
            ) from error
        load_optimizer(model, optimizer, state["optimizer"], groups)
        manifest = self._states.manifest(name)
        return Restored(manifest["step"], manifest["workers"], manifest["metric"], notes)

    def _write(
        self, step: int, state: dict[str, Any], worker_state: WorkerState, metric: float | None
    ) -> str | None:
        """Write a state, several times if need be; what went wrong, the same on every worker."""
        problem = None
        for number in range(len(self._pauses) + 1):
            if number:
                time.sleep(self._pauses[number - 1])
            # An earlier attempt may still be writing somewhere.
            name = self._states.name_of(step, self._attempt + (f"-{number}" if number else ""))
            problem = self._attempt_to_write(name, step, state, worker_state, metric)
            if problem is None:
                self._prune_after(name)
                return None
            self._remove_draft(name)
        return f"the state after step {step} could not be saved: {problem}"

    def _attempt_to_write(
        self,
        name: str,
        step: int,
        state: dict[str, Any],
        worker_state: WorkerState,
        metric: float | None,
    ) -> str | None:
        writer = CheckedWriter(self.folder, name)
        problem = None
        try:
            dcp.save(state, storage_writer=writer, process_group=self._group, no_dist=self._is_alone)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            problem = _reason(error)
        parts = self._gather((problem, writer.checksums, worker_state))
        problem = next((found for found, _, _ in parts if found is not None), None)
        if problem is None and self._worker.rank == 0:
            files = {
                path.removeprefix(f"{name}/"): total for _, sums, _ in parts for path, total in sums.items()
            }
            body = {"step": step, "metric": metric, "files": files, "workers": [mine for _, _, mine in parts]}
            try:
                self._states.complete_with(name, body)
            except Exception as error:  # whatever a file system raises
                problem = _reason(error)
        return self._from_first(problem)

    def _prune_after(self, name: str) -> None:
        """Delete what need not be kept now that this state is complete."""
        self._sound.add(name)
        if self._worker.rank == 0:
            try:
                self._states.prune(self._keep, self._keep_best, self._sound, self._damaged)
            except Exception as error:  # the state is saved all the same, and what is left goes next time
                logger.warning("old states could not be deleted: %s", _reason(error))

    def _remove_draft(self, name: str) -> None:
        if self._worker.rank == 0:
            with contextlib.suppress(Exception):  # where writing fails, so may this; the next start does it
                self._states.remove(name)

    def _newest_sound(self) -> tuple[str | None, list[str]]:
        notes: list[str] = []
        for name in reversed(self._from_first(self._states.complete())):
            problems = [found for found in self._gather(self._problem(name)) if found is not None]
            if not problems:
                self._sound.add(name)
                return name, notes
            damages = [problem for problem, is_damage in problems if is_damage]
            if damages:
                self._damaged.add(name)
            what = "is damaged" if damages else "cannot be read"
            problem = [*damages, problems[0][0]][0]
            notes.append(f"the state after step {step_of(name)} {what} ({problem}); using the one before")
        return None, notes

    def _problem(self, name: str) -> tuple[str, bool] | None:
        """What is wrong with this worker's share of a state's files, and whether that is there to stay."""
        try:
            files = self._states.manifest(name)["files"]
            for file in sorted(files)[self._worker.rank :: self._worker.world_size]:
                if self.folder.checksum(f"{name}/{file}") != tuple(files[file]):
                    return f"{file} is not what was written", True
            if self._worker.rank == 0:
                CheckedReader(self.folder, name).read_metadata()
        except (OSError, ValueError, KeyError) as error:
            is_damage = isinstance(error, FileNotFoundError) or not isinstance(error, OSError)
            return _reason(error), is_damage
        return None

    def _gather(self, value: Any) -> list[Any]:
        """The values of all workers, on each of them."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _from_first(self, value: Any) -> Any:
        """The first worker's value, on each of them."""
        return self._gather(value)[0]


def _reason(error: BaseException) -> str:
    """The first failure of any worker, in a line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
