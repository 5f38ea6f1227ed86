"""Waits until an application of Ray Serve is up, and says what keeps it."""

from __future__ import annotations

import time
from typing import Any

from headway.cluster.capacity import Say

_POLL_S = 0.1
_SAY_AFTER_S = 10.0


def wait_until_running(name: str, say: Say) -> None:
    """Wait as `serve.run` does, but look more often than once a second.

    Args:
        name: of the application.
        say: told what is waited for, if it takes longer than replicas take to start.

    Raises:
        RuntimeError: a replica or the gateway did not start.
    """
    from ray import serve

    began = time.monotonic()
    while True:
        application = serve.status().applications[name]
        if application.status == "RUNNING":
            return
        if application.status == "DEPLOY_FAILED":
            raise RuntimeError(f"the server did not start: {_reason(application)}")
        if (waited := time.monotonic() - began) > _SAY_AFTER_S:
            say(f"waiting for {_missing(application)} ({waited:.0f} s)")
        time.sleep(_POLL_S)


def _reason(application: Any) -> str:
    """Why an application failed: in the words of a deployment that did, which quote its replica's error."""
    failed = [one.message for one in application.deployments.values() if one.status == "DEPLOY_FAILED"]
    return next(iter(failed), "") or str(application.message)


def _missing(application: Any) -> str:
    """What an application still lacks, in Ray Serve's words if it has some for it."""
    starting = {name: one for name, one in application.deployments.items() if one.status != "HEALTHY"}
    reasons = [one.message.partition("\n")[0] for one in starting.values() if one.message]
    return f"{', '.join(starting) or 'Ray Serve'} to start" + (f": {reasons[0]}" if reasons else "")
