"""What must be saved for a stopped run to go on as if it had not stopped, and where it is kept.

Batches and random numbers are functions of (seed, step), so weights, the optimizer, the step and what was
measured since the last report are all. Every worker writes its part with torch.distributed.checkpoint, in
a thread of its own, from a copy. A state is complete once its manifest is there, which is written last and
holds the checksum of every other file; so half a state is never taken for one, on any storage.
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
from headway.engine.parallel.worker import Worker

_PREFIX = "step-"
_MANIFEST = "manifest.json"

WorkerState = dict[str, Any]
"""What a worker has to itself, in JSON's types."""

# torch.distributed.checkpoint warns of what is meant: a worker alone saves alone.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class CheckpointError(RuntimeError):
    """A state could not be saved."""


class Restored(NamedTuple):
    """What a saved state gave back besides weights and optimizer.

    Attributes:
        step: steps done; 0 where nothing sound was saved.
        worker_states: what each worker of the group that saved had to itself, by rank.
        metric: how good the model was when last measured.
        notes: a line for each state that had to be passed over.
    """

    step: int = 0
    worker_states: Sequence[WorkerState] = ()
    metric: float | None = None
    notes: Sequence[str] = ()


class Checkpoints:
    """The states of one run, in a folder. Every worker makes one, and all call each method alike."""

    def __init__(self, folder: Folder, worker: Worker, *, keep: int = 2, keep_best: int = 0) -> None:
        self.folder = folder
        self._worker = worker
        self._keep = keep
        self._keep_best = keep_best
        # A group of its own: the saving thread speaks to its peers while training speaks to them too.
        self._group = dist.new_group(backend="gloo") if worker.world_size > 1 else None
        self._is_alone = self._group is None
        # Each start writes under names of its own: what a worker that is not quite dead yet still writes
        # cannot mix with it.
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
        """Copy the state after `step` steps and return; a thread writes it.

        Waits first while the one before is still being written: there is at most one in flight.

        Args:
            step: steps done.
            model: its parameters and buffers are saved; sharded or not.
            optimizer: over the model's parameters.
            worker_state: what this worker has to itself.
            metric: how good the model is, lower is better; the best states are kept by it.

        Raises:
            CheckpointError: the state before this one could not be saved.
        """
        self.wait()
        state: Any = self._stager.stage(training_state(model, optimizer))
        self._in_flight = self._thread.submit(self._write, step, state, worker_state or {}, metric)

    def wait(self) -> None:
        """Return once the state in flight is complete; a `CheckpointError` where it could not be saved."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            in_flight.result()

    def restore(self, model: nn.Module, optimizer: Optimizer) -> Restored:
        """Load the newest sound state into the model and the optimizer, whatever layout it was saved under.

        Every file is checked against its checksum first. What is half-written is removed.
        """
        if self._worker.rank == 0:
            self._remove_drafts()
        name, notes = self._newest_sound()
        if name is None:
            return Restored(notes=notes)
        state = training_state(model, optimizer)
        groups = copy.deepcopy(state["optimizer"]["param_groups"])
        # An optimizer has no state yet for a parameter that never had a gradient.
        planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
        reader = CheckedReader(self.folder, name)
        dcp.load(
            state,
            storage_reader=reader,
            planner=planner,
            process_group=self._group,
            no_dist=self._group is None,
        )
        load_optimizer(model, optimizer, state["optimizer"], groups)
        manifest = self._manifest(name)
        return Restored(manifest["step"], manifest["workers"], manifest["metric"], notes)

    def _write(
        self, step: int, state: dict[str, Any], worker_state: WorkerState, metric: float | None
    ) -> None:
        try:
            self._write_parts(f"{_PREFIX}{step:09d}-{self._attempt}", step, state, worker_state, metric)
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            reason = str(error).strip().splitlines()[-1]
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
        """Delete all but the newest states and the best ones; the manifest goes first."""
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
            problem = next((found for found in self._gather(self._problem(name)) if found), None)
            if problem is None:
                return name, notes
            notes.append(f"the state after step {_step(name)} is damaged ({problem}); using the one before")
        return None, notes

    def _problem(self, name: str) -> str | None:
        """What is wrong with this worker's share of a state's files."""
        try:
            files = self._manifest(name)["files"]
            for file in sorted(files)[self._worker.rank :: self._worker.world_size]:
                if self.folder.checksum(f"{name}/{file}") != tuple(files[file]):
                    return f"{file} is not what was written"
        except (OSError, ValueError, KeyError) as error:
            return str(error).splitlines()[0]
        return None

    def _manifest(self, name: str) -> dict[str, Any]:
        return _unsealed(self.folder.read(f"{name}/{_MANIFEST}"))

    def _gather(self, value: Any) -> list[Any]:
        """`value` of every worker, on each of them."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._worker.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _from_first(self, value: Any) -> Any:
        """The first worker's `value`, on each of them."""
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


def _sealed(body: dict[str, Any]) -> bytes:
    return json.dumps({"checksum": _checksum(body), "body": body}).encode()


def _unsealed(content: bytes) -> dict[str, Any]:
    """Raises ValueError where the manifest is not what was written."""
    manifest = json.loads(content)
    body: dict[str, Any] = manifest["body"]
    if _checksum(body) != manifest["checksum"]:
        raise ValueError(f"{_MANIFEST} is not what was written")
    return body


def _checksum(body: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body).encode())
