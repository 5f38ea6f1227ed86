"""How long a test waits for what must come: long enough for a slow machine at work, but not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds. A test that waits longer hangs. No figure of speed: a machine half as fast must pass as well."""


def wait_until(condition: Callable[[], Any], poll: float = 0.1) -> None:
    """Return once `condition` holds, which is asked every `poll` seconds.

    Raises:
        AssertionError: it has not within `PATIENCE`.
    """
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(poll)
