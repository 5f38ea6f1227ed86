"""The alias of a registered model, followed: where it moves, the served version moves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from headway.config.serve import ServeConfig
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking
from headway.tracking.references import model_folder

_log = logging.getLogger(__name__)

Switch = Callable[[Release], str | None]
Challenge = Callable[[str, Release | None], str | None]


def current_releases(config: ServeConfig, tracking: Tracking) -> list[Release]:
    """What the settings of each model stand for at present: a folder, or what the registry has.

    Raises:
        ConfigError: one stands for nothing.
    """
    return [_current(str(one.model), tracking, name) for name, one in config.each().items()]


def _current(reference: str, tracking: Tracking, served_as: str | None) -> Release:
    """Served by the registered name, or the folder, where requests have no other name for it."""
    folder, name, version = str(model_folder(reference, tracking)), reference, "local"
    if reference.startswith("models:/"):
        name, version = tracking.registered_version(reference)
    return Release(served_as or name, version, folder)


class AliasWatch:
    """A thread that looks where an alias points, and has the gateway switch to it.

    Args:
        model_uri: `models:/name@alias`.
        tracking: MLflow.
        every: seconds between looks.
        switch: lets a version take over; returns why it was refused.
        served_as: the name that requests give; the registered one when None.
    """

    def __init__(
        self,
        model_uri: str,
        tracking: Tracking,
        every: float,
        switch: Switch,
        served_as: str | None = None,
    ) -> None:
        self._model_uri, self._tracking = model_uri, tracking
        self._served_as = served_as
        self._every, self._switch = every, switch
        self._folders: dict[str, str] = {}
        self._told: set[Release] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alias-watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when the last look is over."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once. A gateway that has restarted is told again what it should serve."""
        name, version = self._tracking.registered_version(self._model_uri)
        release = self._release(name, version)
        self._tell(release, self._switch(release))

    def _release(self, name: str, version: str) -> Release:
        if version not in self._folders:
            folder = self._tracking.download_weights(f"models:/{name}/{version}")
            self._folders[version] = str(folder.resolve())
        return Release(self._served_as or name, version, self._folders[version])

    def _tell(self, release: Release, problem: str | None) -> None:
        if problem is not None and release not in self._told:
            self._told.add(release)
            _log.warning("%s version %s is refused: %s", release.name, release.version, problem)

    def _run(self) -> None:
        while not self._stopped.wait(self._every):
            try:
                self.look()
            except Exception as error:  # the registry or the gateway may be away for a while
                _log.warning("%s could not be looked at: %s", self._model_uri, error)


class ChallengerWatch(AliasWatch):
    """The same for the alias of the version that is tried, which may come and go.

    Args:
        model_uri: `models:/name@alias`, of what is served.
        alias: of what is tried.
        tracking: MLflow.
        every: seconds between looks.
        challenge: has a version of a model tried, or none; returns why it was refused.
        served_as: the name that requests give; the registered one when None.
    """

    def __init__(
        self,
        model_uri: str,
        alias: str,
        tracking: Tracking,
        every: float,
        challenge: Challenge,
        served_as: str | None = None,
    ) -> None:
        self._name = model_uri.removeprefix("models:/").partition("@")[0]
        self._alias, self._challenge = alias, challenge
        super().__init__(f"models:/{self._name}@{alias}", tracking, every, self._try, served_as)

    def look(self) -> None:
        """Look once. That no version has the alias is known from a registry that answers only."""
        version = self._tracking.version_with_alias(self._name, self._alias)
        if version is None:
            self._challenge(self._served_as or self._name, None)
            return
        release = self._release(self._name, version)
        self._tell(release, self._switch(release))

    def _try(self, release: Release) -> str | None:
        return self._challenge(release.name, release)
