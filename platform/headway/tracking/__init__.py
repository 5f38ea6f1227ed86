"""Runs, metrics and models in MLflow; the only package that imports it, and only when it is first used.

Every address is explicit: nothing here reads or changes MLflow's global state.
"""

from headway.tracking.run import Run
from headway.tracking.server import Tracking, tracking_uri

__all__ = ["Run", "Tracking", "tracking_uri"]
