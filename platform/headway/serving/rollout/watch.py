"""Follows the aliases of registered models: if one moves to another version, the server follows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from headway.config.serve import ServeConfig
from headway.redaction import redacted
from headway.serving.scheduling.messages import Release
from headway.tracking import Tracking
from headway.tracking.references import model_folder

_log = logging.getLogger(__name__)

Switch = Callable[[Release], str | None]
Challenge = Callable[[str, Release | None], str | None]


def current_releases(config: ServeConfig, tracking: Tracking) -> list[Release]:
    """The version that each model's settings refer to now: a folder, or one in the registry.

    Raises:
        ConfigError: there is no such folder or version.
    """
    return [_current(str(one.model), tracking, name) for name, one in config.each().items()]


def _current(reference: str, tracking: Tracking, served_as: str | None) -> Release:
    """A version by the name that requests give, or else its registered name or its folder."""
    folder, name, version = str(model_folder(reference, tracking)), reference, "local"
    if reference.startswith("models:/"):
        name, version = tracking.registered_version(reference)
    return Release(served_as or name, version, folder)


class AliasWatch:
    """A thread that asks which version has an alias, and lets the gateway switch to it.

    Args:
        model_uri: `models:/name@alias`.
        tracking: MLflow.
        interval_s: seconds between two looks at the registry.
        switch: lets a version serve; returns why it was refused, or None.
        served_as: the name that requests give; the registered name if None.
    """

    def __init__(
        self,
        model_uri: str,
        tracking: Tracking,
        interval_s: float,
        switch: Switch,
        served_as: str | None = None,
    ) -> None:
        self._model_uri, self._tracking = model_uri, tracking
        self._served_as = served_as
        self._interval_s, self._switch = interval_s, switch
        self._folders: dict[str, str] = {}
        self._reported: set[Release] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alias-watch", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and return once it has ended."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def look(self) -> None:
        """Look once. The gateway is told even if nothing moved, since it may have restarted."""
        name, version = self._tracking.registered_version(self._model_uri)
        release = self._release(name, version)
        self._report(release, self._switch(release))

    def _release(self, name: str, version: str) -> Release:
        if version not in self._folders:
            folder = self._tracking.download_weights(f"models:/{name}/{version}")
            self._folders[version] = str(folder.resolve())
        return Release(self._served_as or name, version, self._folders[version])

    def _report(self, release: Release, problem: str | None) -> None:
        if problem is not None and release not in self._reported:
            self._reported.add(release)
            _log.warning("%s version %s was refused: %s", release.name, release.version, problem)

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self.look()
            except Exception as error:  # the registry or the gateway may be down for a while
                _log.warning("%s cannot be looked up; will try again: %s", self._model_uri, redacted(error))


class ChallengerWatch(AliasWatch):
    """The same for the challenger's alias, which some version may have or none.

    Args:
        model_uri: `models:/name@alias`, of the serving version.
        alias: of the challenger.
        tracking: MLflow.
        interval_s: seconds between two looks at the registry.
        challenge: tries a version of a model, or none; returns why it was refused, or None.
        served_as: the name that requests give; the registered name if None.
    """

    def __init__(
        self,
        model_uri: str,
        alias: str,
        tracking: Tracking,
        interval_s: float,
        challenge: Challenge,
        served_as: str | None = None,
    ) -> None:
        self._name = model_uri.removeprefix("models:/").partition("@")[0]
        self._alias, self._challenge = alias, challenge
        super().__init__(f"models:/{self._name}@{alias}", tracking, interval_s, self._try, served_as)

    def look(self) -> None:
        """Look once. The challenger ends only if the registry answers that no version has the alias."""
        version = self._tracking.version_with_alias(self._name, self._alias)
        if version is None:
            self._challenge(self._served_as or self._name, None)
            return
        release = self._release(self._name, version)
        self._report(release, self._switch(release))

    def _try(self, release: Release) -> str | None:
        return self._challenge(release.name, release)
