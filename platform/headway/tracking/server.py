"""An MLflow server or database: its runs and its model registry."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.redaction import redacted
from headway.tracking.database import create_database
from headway.tracking.outage import MAX_SECONDS_AWAY, PatientClient, is_outage
from headway.tracking.registry import Registry
from headway.tracking.run import Run

_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise MLflow puts the lock file of a user's project in the working folder into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
_TOKEN = "headway.token"
_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages open on what belongs to training: otherwise on traces of language models."""


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, otherwise a SQLite file under `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


def _family(parent: Run | None) -> dict[str, str]:
    return {} if parent is None else {"mlflow.parentRunId": parent.run_id}


@dataclass(frozen=True)
class Tracking(Registry):
    """An MLflow server or database, and the folder of its artifacts if it is local.

    Attributes:
        uri: of tracking and registry.
        root: folder of the embedded database and its artifacts.
    """

    uri: str = field(repr=False)  # it may hold a password
    root: Path

    @classmethod
    def at(cls, root: Path) -> Tracking:
        """The server that the environment names, or the embedded database under `root`."""
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        return cls(tracking_uri(root), root)

    @cached_property
    def client(self) -> Any:
        """The MLflow client.

        Raises:
            ConfigError: nothing answers at the address.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            with self._creation_lock():
                path = Path(self.uri.removeprefix("sqlite:///"))
                if self.uri.startswith("sqlite:///") and not path.exists():
                    create_database(path)
                return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"MLFLOW_TRACKING_URI: {self.uri!r} cannot be used: {reason}") from error

    @property
    def max_seconds_away(self) -> float:
        """How long to wait for a server that was there before and does not answer; a file is always there."""
        return MAX_SECONDS_AWAY if self.uri.startswith("http") else 0.0

    def patient(self) -> Tracking:
        """The same server, whose calls wait while it does not answer, as do those of runs that it starts."""
        if not self.max_seconds_away:
            return self
        waiting = replace(self)
        vars(waiting)["client"] = PatientClient(self.client, self.max_seconds_away)
        vars(waiting)["_experiment_ids"] = self._experiment_ids
        return waiting

    @contextlib.contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """A lock, since two processes that create the same SQLite file at once would both fail."""
        if not self.uri.startswith("sqlite:"):
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".mlflow.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def start_run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        parent: Run | None = None,
        token: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Run:
        """Start a run in an experiment, which is created if missing; it is a child of `parent` if given.

        A run with a `token` can be found again by `run` and `children`. A child has its parent's tags, but
        for those that it is given itself.
        """
        own = {**(parent.tags if parent else {}), **(tags or {})}
        experiment_id = self.experiment_id(experiment)
        every = own | _family(parent) | ({_TOKEN: token} if token is not None else {})
        created = self.client.create_run(experiment_id, run_name=name, tags=every)
        run = Run(self.client, created.info.run_id, experiment_id, own)
        if params:
            run.log_new_params(params, {})
        return run

    def children(self, parent: Run) -> dict[str, Run]:
        """The child runs of a run, by the token that they were started with."""
        return {
            tags[_TOKEN]: Run(self.client, run_id, parent.experiment_id, parent.tags)
            for run_id, tags in self.tags_of_children(parent).items()
            if _TOKEN in tags
        }

    def tags_of_children(self, parent: Run) -> dict[str, dict[str, str]]:
        """The tags of the child runs of a run, by the children's ids."""
        found = self.client.search_runs(
            [parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'", max_results=50_000
        )
        return {run.info.run_id: dict(run.data.tags) for run in found}

    def reopen(
        self, run_id: str, parent: Run | None = None, tags: Mapping[str, str] | None = None
    ) -> Run | None:
        """Continue a run that an earlier process began; None if there is no run with this id.

        It becomes a child of `parent`, and has the tags of the process that continues it.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, "RUNNING")
        except MlflowException as error:
            if is_outage(error):
                raise
            return None
        own = {**(parent.tags if parent else {}), **(tags or {})}
        run = Run(self.client, run_id, self.client.get_run(run_id).info.experiment_id, own)
        run.set_tags(own | _family(parent))
        return run

    def check(self) -> None:
        """Raise a `ConfigError` if nothing answers at the address."""
        self._looked_up_experiment("headway doctor")

    @contextlib.contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any] | None = None,
        token: str | None = None,
        parent: Run | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> Iterator[Run]:
        """A run that ends with the block: FINISHED, FAILED if the block raises, or KILLED if interrupted.

        A run that was started with the same `token` before, by a process that may be dead, is continued.
        """
        run = self.continued_run(experiment, token, params, parent, tags) or self.start_run(
            experiment, name, params, parent, token, tags
        )
        try:
            yield run
        except KeyboardInterrupt:
            run.abandon("KILLED")
            raise
        except BaseException as error:
            run.abandon("FAILED", redacted(error))
            raise
        run.close()

    def continued_run(
        self,
        experiment: str,
        token: str | None,
        params: Mapping[str, Any] | None,
        parent: Run | None,
        tags: Mapping[str, str] | None,
    ) -> Run | None:
        """The run that was started with this token, which continues; None if there is none."""
        if token is None:
            return None
        earlier = self.client.search_runs([self.experiment_id(experiment)], f"tags.`{_TOKEN}` = '{token}'")
        if not earlier:
            return None
        run = self.reopen(earlier[0].info.run_id, parent, tags)
        if run is not None:
            # The process that started it may have died before it logged them all.
            run.log_new_params(params or {}, earlier[0].data.params)
        return run

    @cached_property
    def _experiment_ids(self) -> dict[str, str]:
        """Those that were looked up."""
        return {}

    def experiment_id(self, name: str) -> str:
        """MLflow's id of an experiment, which is created if missing; it is looked up once.

        Raises:
            ConfigError: nothing answers at the address.
        """
        if name not in self._experiment_ids:
            self._experiment_ids[name] = self._looked_up_experiment(name)
        return self._experiment_ids[name]

    def _looked_up_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.root / "artifacts").resolve().as_uri()
        try:
            experiment = self.client.get_experiment_by_name(name)
            if experiment is not None:
                return str(experiment.experiment_id)
            return str(self.client.create_experiment(name, location, tags=_KIND))
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"MLFLOW_TRACKING_URI: {self.uri!r} cannot be used: {reason}") from error
