"""What `headway serve` serves, for Ray Serve's own config files and KubeRay's RayService.

import_path: headway.serving.declared:build
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.config.loading import validate
from headway.config.serve import ServeConfig
from headway.serving.deploy import bind_application
from headway.serving.resources import cores_per_replica
from headway.serving.rollout.watch import current_releases
from headway.tracking import Tracking


def build(arguments: dict[str, Any]) -> Any:
    """The application of one model, or several; Ray Serve calls this where a config file names it.

    An alias is looked up when this is called, and not followed: deploy again to look it up again.

    Args:
        arguments: the settings of the step `serve`, and `runs`, the folder that all machines share, where
            the model's registry is if MLFLOW_TRACKING_URI names no other.

    Returns:
        A `ray.serve.Application`.

    Raises:
        ConfigError: settings that are none, or no such model.
    """

    runs = Path(arguments.get("runs", "runs"))
    config = validate(ServeConfig, {name: value for name, value in arguments.items() if name != "runs"})
    if any(settings.challenger for settings in config.each().values()):
        raise ConfigError("challenger: aliases are not followed here; use `headway serve`")
    tracking = Tracking.at(runs)
    return bind_application(config, current_releases(config, tracking), cores_per_replica(config))
