"""The files and folders of one training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headway.config.base import ConfigError
from headway.config.training import TrainingConfig
from headway.engine.checkpoint.checkpoints import Checkpoints
from headway.engine.checkpoint.saved_states import saved_steps
from headway.engine.checkpoint.storage import Folder
from headway.engine.parallel.worker import Worker
from headway.runs.context import Context


@dataclass(frozen=True)
class RunPaths:
    """The files and folders of one training run; small, since it is sent to every worker.

    Attributes:
        folder: of the step, on storage that all workers share.
        states: address of the saved states, on any storage.
    """

    folder: Path
    states: str

    @classmethod
    def at(cls, folder: Path) -> RunPaths:
        """Everything in one folder, the states too."""
        return cls(folder.resolve(), str(folder.resolve() / "state"))

    @classmethod
    def of(cls, config: TrainingConfig, context: Context) -> RunPaths:
        """The paths of a run in its step's folder, with states in the `checkpoint_folder` if there is one.

        Raises:
            ConfigError: nothing can be written to the `checkpoint_folder`.
        """
        folder = context.folder.resolve()
        base = config.checkpoint_folder
        if base is None:
            return cls.at(folder)
        # Named after the run, not its settings: a new run finds no states of an earlier one.
        token = (folder / "token").read_text(encoding="utf-8")
        path, query, options = base.partition("?")
        name = f"{context.experiment}-{context.step}-{token[:12]}"
        states = f"{path.rstrip('/')}/{name}{query}{options}"
        try:
            Folder(states).create()
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"checkpoint_folder: {base!r} cannot be used: {reason}") from error
        return cls(folder, states)

    @property
    def journal(self) -> Path:
        """The file of what was measured."""
        return self.folder / "journal.jsonl"

    @property
    def stop_sign(self) -> Path:
        """A file that exists once training should save its state and stop."""
        return self.folder / "stop"

    def checkpoints(self, worker: Worker, config: TrainingConfig, min_seconds: float = 0.0) -> Checkpoints:
        """The saved states, for one worker; at least so many seconds are between two of them."""
        return Checkpoints(
            Folder(self.states),
            worker,
            keep=config.keep_checkpoints,
            keep_best=config.keep_best_checkpoints,
            min_seconds=min_seconds,
        )

    def newest_state(self) -> int:
        """Steps of the newest saved state; 0 without one."""
        return max(saved_steps(Folder(self.states)), default=0)
