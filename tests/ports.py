"""Ports for the servers that tests start."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

# Below the ports that Linux hands out by itself, and above those of Ray's workers: between the choice of a
# port and the start of its server nobody else gets it.
_CHOICES = range(20_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, another one at each call."""
    # Several processes of tests choose at the same time: not by the random numbers that a test may have set.
    for port in random.SystemRandom().sample(_CHOICES, len(_CHOICES)):
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no port is free")


@contextmanager
def deaf_port() -> Iterator[int]:
    """A port that refuses connections, and that no server can take meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])
