"""The application of `headway serve`, for Ray Serve's config files and KubeRay's RayService.

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
    """The application for one model, or several. Ray Serve calls this if a config file names it.

    Aliases are looked up once, and not followed; deploy again to look them up again.

    Args:
        arguments: the settings of the step `serve`, and `runs`, a folder that all machines share. It holds
            the registry, unless MLFLOW_TRACKING_URI names another one.

    Returns:
        A `ray.serve.Application`.

    Raises:
        ConfigError: a setting is wrong, or there is no such model.
    """
    runs = Path(arguments.get("runs", "runs"))
    config = validate(ServeConfig, {name: value for name, value in arguments.items() if name != "runs"})
    if any(settings.challenger for settings in config.each().values()):
        raise ConfigError(
            "challenger: needs `headway serve`; an application from a config file does not follow aliases"
        )
    tracking = Tracking.at(runs)
    return bind_application(config, current_releases(config, tracking), cores_per_replica(config))
