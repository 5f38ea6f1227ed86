"""MLflow's model registry: encoders as versions with an alias, a card and the weights to serve."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from headway.config.base import ConfigError
from headway.data.atomic import atomic_folder
from headway.tracking.logged_models import has_files, is_reference, logged_model_of
from headway.tracking.pyfunc import add_files, log_model
from headway.tracking.run import Run

if TYPE_CHECKING:
    from headway.inference.description import Kind

_WEIGHTS = "artifacts/weights"
_VERSIONS = "mlflow.modelVersions"
"""MLflow's tag of a logged model with the versions that it is registered as, which its pages show."""
MODEL_ID = "headway.model_id"
"""Tag of a registered version with the id of its logged model, which the registry does not keep."""


class RegisteredVersion(NamedTuple):
    """A version in the registry, the logged model that it is, and the run that trained it."""

    name: str
    number: int
    model_id: str
    trained_by: str


class Registry:
    """The registry of an MLflow server or database, which `Tracking` is.

    Attributes:
        uri: of the registry.
        root: folder that all machines share, for copies of weights that a server hands out.
    """

    uri: str
    root: Path

    @property
    def client(self) -> Any:
        """The MLflow client."""
        raise NotImplementedError

    def register_model(
        self,
        run: Run,
        weights: Path,
        name: str,
        alias: str,
        example: str,
        kind: Kind,
        card: Callable[[str], tuple[str, dict[str, str]]] = lambda model_id: ("", {}),
    ) -> RegisteredVersion:
        """Register an encoder's folder as an MLflow pyfunc model, without pickle.

        If the folder already stands for a logged model, that one gets the files and is registered: a model
        has one page, whatever it is called.

        Args:
            run: the run that registers it.
            weights: a folder of transformers' `save_pretrained`, with the tokenizer.
            name: in the registry.
            alias: to point to the new version.
            example: a text, stored as the input example.
            kind: what it answers.
            card: gives the description and the tags of the version for the id of its logged model.
        """
        client = run.client
        model_id = logged_model_of(client, weights)
        if model_id is None:
            logged = log_model(client, run.experiment_id, run.run_id, name, weights, example, kind)
        else:
            logged = client.get_logged_model(model_id)
            if is_reference(logged):
                add_files(client, logged, weights, example, kind)
                has_files(client, logged)
            run.log_inputs([], [model_id])
        self._ensure_registered(client, name)
        text, tags = card(logged.model_id)
        version = client.create_model_version(
            name,
            source=logged.artifact_location,
            run_id=logged.source_run_id,
            tags=tags | {MODEL_ID: logged.model_id},
            description=text,
            model_id=logged.model_id,
        )
        versions = json.loads(logged.tags.get(_VERSIONS, "[]"))
        versions.append({"name": name, "version": str(version.version)})
        client.set_logged_model_tags(logged.model_id, {_VERSIONS: json.dumps(versions)})
        client.set_registered_model_alias(name, alias, version.version)
        return RegisteredVersion(name, int(version.version), logged.model_id, logged.source_run_id)

    @staticmethod
    def _ensure_registered(client: Any, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(name)
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

    def logged_model(self, reference: str, folder: Path) -> str | None:
        """The id of the logged model that a folder or `models:/name@alias` stands for; None if none does."""
        if not reference.startswith("models:/"):
            return logged_model_of(self.client, folder)
        version = self.client.get_model_version(*self.registered_version(reference))
        model_id: str | None = version.tags.get(MODEL_ID)
        return model_id

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
