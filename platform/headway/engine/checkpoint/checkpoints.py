"""Save and restore what a stopped run needs to continue as if it had not been stopped.

Batches and random numbers are functions of (seed, step), so a state consists of the weights, the optimizer's
state, the step, and the metrics since the last report. Every worker writes its part with
torch.distributed.checkpoint, from a copy and in a thread. A state is complete once it has a manifest, which
is written last and contains the checksums of all other files. So an incomplete state is never used, on any
storage.
"""

from __future__ import annotations

import copy
import json
import uuid
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import xxhash
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.optim import Optimizer

from headway.engine.checkpoint.state_dict import load_optimizer, training_state
from headway.engine.checkpoint.storage import CheckedReader, CheckedWriter, Folder
from headway.engine.checkpoint.unpickling import PlainLoadPlanner
from headway.engine.parallel.worker import Worker

_PREFIX = "step-"
_MANIFEST = "manifest.json"

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
    """The states of a run, in a folder. Every worker makes one, and all call each method alike."""

    def __init__(self, folder: Folder, worker: Worker, *, keep: int = 2, keep_best: int = 0) -> None:
        self.folder = folder
        self._worker = worker
        self._keep = keep
        self._keep_best = keep_best
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
        self._in_flight: Future[None] | None = None

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        worker_state: WorkerState | None = None,
        metric: float | None = None,
    ) -> None:
        """Copy the state after `step` steps, and return; a thread writes it.

        Waits first if the previous state is still being written.

        Args:
            step: how many steps are done.
            model: the module whose parameters and buffers are saved, sharded or not.
            optimizer: of the model's parameters.
            worker_state: what this worker keeps to itself.
            metric: how good the model is, by which the best states are kept; lower is better.

        Raises:
            CheckpointError: the previous state could not be saved.
        """
        self.wait()
        state: Any = self._stager.stage(training_state(model, optimizer))
        self._in_flight = self._thread.submit(self._write, step, state, worker_state or {}, metric)

    def wait(self) -> None:
        """Wait until the latest state is complete; raise a `CheckpointError` if it could not be saved."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def restore(self, model: nn.Module, optimizer: Optimizer) -> Restored:
        """Load the newest undamaged state into model and optimizer, whatever layout it was saved with.

        Every file's checksum is verified first. Incomplete states are removed.

        Raises:
            CheckpointError: the state is whole, but not one of this model's, or holds what no state does.
        """
        if self._worker.rank == 0:
            self._remove_drafts()
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
            raise CheckpointError(f"the state after step {_step(name)} cannot be loaded: {reason}") from error
        load_optimizer(model, optimizer, state["optimizer"], groups)
        manifest = self._manifest(name)
        return Restored(manifest["step"], manifest["workers"], manifest["metric"], notes)

    def _write(
        self, step: int, state: dict[str, Any], worker_state: WorkerState, metric: float | None
    ) -> None:
        try:
            self._write_parts(f"{_PREFIX}{step:09d}-{self._attempt}", step, state, worker_state, metric)
        except (Exception, CheckpointException) as error:  # CheckpointException is not an Exception
            reason = _reason(error)
            raise CheckpointError(f"the state after step {step} could not be saved: {reason}") from error

    def _write_parts(
        self, name: str, step: int, state: dict[str, Any], worker_state: WorkerState, metric: float | None
    ) -> None:
        writer = CheckedWriter(self.folder, name)
        dcp.save(state, storage_writer=writer, process_group=self._group, no_dist=self._is_alone)
        parts = self._gather((writer.checksums, worker_state))
        if self._worker.rank == 0:
            files = {
                path.removeprefix(f"{name}/"): total for sums, _ in parts for path, total in sums.items()
            }
            body = {"step": step, "metric": metric, "files": files, "workers": [mine for _, mine in parts]}
            self.folder.write(f"{name}/{_MANIFEST}", _sealed(body))
            self._prune()

    def _prune(self) -> None:
        """Delete all but the newest and the best states, their manifests first."""
        names = _complete(self.folder)
        metrics = {name: self._manifest(name)["metric"] for name in names} if self._keep_best else {}
        measured = [name for name in names if metrics.get(name) is not None]
        best = sorted(measured, key=lambda name: metrics[name])[: self._keep_best]
        for name in set(names[: -self._keep]) - set(best):
            self.folder.remove(f"{name}/{_MANIFEST}")
            self.folder.remove(name)

    def _remove_drafts(self) -> None:
        for name in set(_all(self.folder)) - set(_complete(self.folder)):
            self.folder.remove(name)

    def _newest_sound(self) -> tuple[str | None, list[str]]:
        notes: list[str] = []
        for name in reversed(self._from_first(_complete(self.folder))):
            problem = next((problem for problem in self._gather(self._problem(name)) if problem), None)
            if problem is None:
                return name, notes
            notes.append(f"the state after step {_step(name)} is damaged ({problem}); using the one before")
        return None, notes

    def _problem(self, name: str) -> str | None:
        """What is wrong with this worker's part of a state's files."""
        try:
            files = self._manifest(name)["files"]
            for file in sorted(files)[self._worker.rank :: self._worker.world_size]:
                if self.folder.checksum(f"{name}/{file}") != tuple(files[file]):
                    return f"{file} is not what was written"
            if self._worker.rank == 0:
                CheckedReader(self.folder, name).read_metadata()
        except (OSError, ValueError, KeyError) as error:
            return str(error).splitlines()[0]
        return None

    def _manifest(self, name: str) -> dict[str, Any]:
        return _unsealed(self.folder.read(f"{name}/{_MANIFEST}"))

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


def saved_steps(folder: Folder) -> list[int]:
    """Steps of all complete states in a folder, ascending."""
    return [_step(name) for name in _complete(folder)]


def _all(folder: Folder) -> list[str]:
    return [name for name in folder.names() if name.startswith(_PREFIX)]


def _complete(folder: Folder) -> list[str]:
    return [name for name in _all(folder) if folder.exists(f"{name}/{_MANIFEST}")]


def _step(name: str) -> int:
    return int(name.removeprefix(_PREFIX).partition("-")[0])


def _reason(error: BaseException) -> str:
    """The first failure of any worker, in a line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _sealed(body: dict[str, Any]) -> bytes:
    return json.dumps({"checksum": _checksum(body), "body": body}).encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    """The content of a manifest; raises ValueError if it is damaged."""
    manifest = json.loads(content)
    body: dict[str, Any] = manifest["body"]
    if _checksum(body) != manifest["checksum"]:
        raise ValueError(f"{_MANIFEST} is not what was written")
    return body


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body).encode())
