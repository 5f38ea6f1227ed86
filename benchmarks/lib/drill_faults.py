"""What the serving drill does to a server: it kills replicas and the gateway, and serves what kills them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np

from headway.inference.tokens import TextTokenizer
from headway.serving.scheduling import replica
from headway.serving.scheduling.messages import Release
from lib.drill_models import POISON

APPLICATION = "headway"
DEADLY_VERSION = "3"


class Mortal(replica.Encoder):
    """A replica that dies when it loads the deadly version, or computes the poisonous word."""

    def __init__(self, release: Release, settings: Any) -> None:
        """Load the first version."""
        super().__init__(release, settings)
        tokenizer = TextTokenizer(Path(release.folder), 8).backend
        self._poison = tokenizer.encode(POISON, add_special_tokens=False).ids

    async def compute(self, release: Any, operation: Any, pack: Any, unanswered_tokens: int) -> Any:
        """See `Encoder`."""
        if set(self._poison) <= set(np.unique(pack.ids).tolist()):
            os.kill(os.getpid(), signal.SIGKILL)
        return await super().compute(release, operation, pack, unanswered_tokens)

    def _load(self, release: Release) -> Any:
        if release.version == DEADLY_VERSION:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._load(release)


class Killer(threading.Thread):
    """Kills a replica that runs every few seconds, whichever it is.

    Attributes:
        killed: how many.
        most: replicas that ran at the same time.
        stopped: ends it.
    """

    def __init__(self, every_s: float) -> None:
        super().__init__(daemon=True)
        self.killed, self.most, self.stopped = 0, 0, threading.Event()
        self._every_s = every_s

    def run(self) -> None:
        """Count and kill until stopped."""
        while not self.stopped.wait(self._every_s):
            replicas = processes("Encoder")
            self.most = max(self.most, len(replicas))
            if replicas:
                with contextlib.suppress(ProcessLookupError):  # Ray Serve may not know yet that it died
                    os.kill(random.choice(replicas), signal.SIGKILL)
                    self.killed += 1


def kill_gateway() -> int:
    """Kill the gateway; returns the process that it was."""
    [process] = processes("Gateway")
    os.kill(process, signal.SIGKILL)
    return process


def processes(deployment: str) -> list[int]:
    """The process ids of a deployment's replicas that run; those that still start are left in peace."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"].get(APPLICATION, {})
    replicas = application.get("deployments", {}).get(deployment, {}).get("replicas", [])
    return [one["pid"] for one in replicas if one["state"] == "RUNNING" and one["pid"]]
