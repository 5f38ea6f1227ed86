"""Where the gateway's log goes: into the file that Ray Serve keeps, and turns over, for its replica."""

from __future__ import annotations

import logging


def log_beside_ray_serve() -> None:
    """Write Headway's log, with a line for each request, into Ray Serve's file; warnings go to stderr too.

    The file is in the folder `serve` of the logs of Ray's session.
    """
    log = logging.getLogger("headway")
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    # The handlers in front of the files may hold lines back; the files themselves take each at once.
    files = [getattr(handler, "target", handler) for handler in logging.getLogger("ray.serve").handlers]
    log.handlers = [*files, warnings]
    log.setLevel(logging.INFO)
    log.propagate = False
