"""An MLflow server or database: its runs and its model registry."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headway.config.base import ConfigError
from headway.data.atomic import atomic_folder
from headway.redaction import redacted
from headway.tracking.database import create_database
from headway.tracking.pyfunc import log_model
from headway.tracking.run import Run

if TYPE_CHECKING:
    from headway.inference.predictor import Kind

_QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise MLflow puts the lock file of a user's project in the working folder into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_RECORD_ENV_VARS_IN_MODEL_LOGGING": "false",
}
_WEIGHTS = "artifacts/weights"
_TOKEN = "headway.token"


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI` if it is set, otherwise a SQLite file under `root`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve()}/mlflow.db"


@dataclass(frozen=True)
class Tracking:
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
    ) -> Run:
        """Start a run in an experiment, which is created if missing; it is a child of `parent` if given.

        A run with a `token` can be found again by `run` and `children`.
        """
        tags = {"mlflow.source.name": "headway"}
        if token is not None:
            tags[_TOKEN] = token
        if parent is not None:
            tags["mlflow.parentRunId"] = parent.run_id
        created = self.client.create_run(self._experiment_id(experiment), run_name=name, tags=tags)
        run = Run(self.client, created.info.run_id)
        if params:
            run.log_params(params)
        return run

    def children(self, parent: Run) -> dict[str, Run]:
        """The child runs of a run, by the token that they were started with."""
        experiment = self.client.get_run(parent.run_id).info.experiment_id
        found = self.client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{parent.run_id}'", max_results=50_000
        )
        return {
            run.data.tags[_TOKEN]: Run(self.client, run.info.run_id)
            for run in found
            if _TOKEN in run.data.tags
        }

    def reopen(self, run_id: str) -> Run | None:
        """Continue a run that an earlier process began; None if there is no run with this id."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(run_id, "RUNNING")
        except MlflowException:
            return None
        return Run(self.client, run_id)

    def check(self) -> None:
        """Raise a `ConfigError` if nothing answers at the address."""
        self._experiment_id("headway doctor")

    @contextlib.contextmanager
    def run(
        self, experiment: str, name: str, params: Mapping[str, Any] | None = None, token: str | None = None
    ) -> Iterator[Run]:
        """A run that ends with the block: FINISHED, FAILED if the block raises, or KILLED if interrupted.

        A run that was started with the same `token` before, by a process that may be dead, is continued.
        """
        run = self._continued_run(experiment, token, params) or self.start_run(
            experiment, name, params, token=token
        )
        try:
            yield run
        except KeyboardInterrupt:
            run.close("KILLED")
            raise
        except BaseException as error:
            run.close("FAILED", redacted(error))
            raise
        run.close()

    def _continued_run(
        self, experiment: str, token: str | None, params: Mapping[str, Any] | None
    ) -> Run | None:
        if token is None:
            return None
        earlier = self.client.search_runs([self._experiment_id(experiment)], f"tags.`{_TOKEN}` = '{token}'")
        if not earlier:
            return None
        run = Run(self.client, earlier[0].info.run_id)
        self.client.update_run(run.run_id, status="RUNNING")
        run.log_params(params or {})  # the process that started it may have died before it logged them all
        return run

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        location = None
        if self.uri.startswith("sqlite:"):
            location = (self.root / "artifacts").resolve().as_uri()
        try:
            experiment = self.client.get_experiment_by_name(name)
            return experiment.experiment_id if experiment else self.client.create_experiment(name, location)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"MLFLOW_TRACKING_URI: {self.uri!r} cannot be used: {reason}") from error

    def register_model(
        self, run: Run, experiment: str, weights: Path, name: str, alias: str, example: str, kind: Kind
    ) -> int:
        """Register an encoder's folder as an MLflow pyfunc model, without pickle.

        Args:
            run: the run that it belongs to.
            experiment: of that run.
            weights: a folder of transformers' `save_pretrained`, with the tokenizer.
            name: in the registry.
            alias: to point to the new version.
            example: a text, stored as the input example.
            kind: what it answers.

        Returns:
            The number of the version.
        """
        experiment_id = self._experiment_id(experiment)
        logged = log_model(self.client, experiment_id, run.run_id, name, weights, example, kind)
        self._ensure_registered(name)
        version = self.client.create_model_version(
            name, source=logged.artifact_location, run_id=run.run_id, model_id=logged.model_id
        )
        self.client.set_registered_model_alias(name, alias, version.version)
        return int(version.version)

    def _ensure_registered(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def registered_version(self, model_uri: str) -> tuple[str, str]:
        """Name and version that `models:/name@alias` or `models:/name/version` stands for.

        Raises:
            ConfigError: no such model, alias or version.
        """
        from mlflow.exceptions import MlflowException

        name, separator, rest = model_uri.removeprefix("models:/").partition("@")
        if not separator:
            name, _, rest = name.partition("/")
        if not name or not rest:
            raise ConfigError(f"model: {model_uri!r}; write models:/name@alias or models:/name/version")
        try:
            get = self.client.get_model_version_by_alias if separator else self.client.get_model_version
            return name, str(get(name, rest).version)
        except MlflowException as error:
            raise ConfigError(f"model: {model_uri!r} is not in the registry at {self.uri}") from error

    def version_with_alias(self, name: str, alias: str) -> str | None:
        """The version of a registered model that has an alias; None if none has."""
        version = self.client.get_registered_model(name).aliases.get(alias)
        return None if version is None else str(version)

    def download_weights(self, model_uri: str) -> Path:
        """A folder with the transformers files of a registered model; it must not be written to.

        All machines see it: where the artifacts lie, or a copy under `root`, which they share, of those that
        a server hands out.
        """
        import mlflow

        name, version = self.registered_version(model_uri)
        source = self.client.get_model_version_download_uri(name, version)
        download = partial(mlflow.artifacts.download_artifacts, f"{source}/{_WEIGHTS}", tracking_uri=self.uri)
        if source.startswith(("file:", "/")):
            return Path(download())
        # A model that is deleted and made again has its versions' numbers again, from other sources.
        digest = hashlib.blake2b(f"{self.uri} {source}".encode(), digest_size=6).hexdigest()
        folder = self.root / "stores" / "models" / f"{name}-{version}-{digest}"
        if not folder.is_dir():
            with atomic_folder(folder) as draft:
                (draft / ".download").mkdir()
                for file in Path(download(dst_path=str(draft / ".download"))).iterdir():
                    file.rename(draft / file.name)
                shutil.rmtree(draft / ".download")
        return folder
