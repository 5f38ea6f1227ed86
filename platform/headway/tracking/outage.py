"""Waits for an MLflow server that does not answer for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from headway.redaction import redacted

MAX_SECONDS_AWAY = 1800.0
"""How long a server may be away before a step gives up; as long as a cluster may take to add nodes."""

_FIRST_WAIT = 1.0
_MAX_WAIT = 30.0
_UNREACHABLE = "INTERNAL_ERROR"
"""MLflow's code for a server that cannot be reached, if the server did not send it itself."""
_UNAVAILABLE = "TEMPORARILY_UNAVAILABLE"
"""MLflow's code for a server whose database cannot be reached."""

logger = logging.getLogger(__name__)


class PatientClient:
    """MLflow's client, each of whose calls is repeated until the server answers.

    Args:
        client: MLflow's.
        max_seconds: after so long, the error is raised.
    """

    def __init__(self, client: Any, max_seconds: float) -> None:
        self._client = client
        self._max_seconds = max_seconds

    @property
    def impatient(self) -> Any:
        """MLflow's client, which raises at once."""
        return self._client

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return partial(self._call, value) if callable(value) else value

    def _call(self, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        deadline, wait = time.monotonic() + self._max_seconds, _FIRST_WAIT
        while True:
            try:
                return method(*arguments, **named)
            except Exception as error:
                if not is_outage(error) or time.monotonic() + wait > deadline:
                    raise
                logger.warning("MLflow does not answer; trying again: %s", _first_line(error))
            time.sleep(wait)
            wait = min(2 * wait, _MAX_WAIT)


def is_outage(error: Exception) -> bool:
    """Whether an error says that the server did not answer, and not that it refused what was asked."""
    import requests
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, RestException):  # the server's own answer
        return error.error_code == _UNAVAILABLE
    if isinstance(error, MlflowException):
        return error.error_code in (_UNREACHABLE, _UNAVAILABLE)
    if isinstance(error, requests.RequestException):  # of an artifact that is sent or fetched
        return error.response is None or error.response.status_code >= 500
    return isinstance(error, ConnectionError | TimeoutError)


def _first_line(error: Exception) -> str:
    return redacted(str(error).splitlines()[0] if str(error) else type(error).__name__)
