"""Put a model behind HTTP on Ray Serve, and take it down again."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from headway.config import ConfigError, ServeConfig

_APPLICATION = "headway"


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be bound.

    Raises:
        ConfigError: the port is taken, or the host is not this machine's.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port: {host}:{port} cannot be bound: {error.strerror}") from error


def deploy(config: ServeConfig, folder: Path, name: str, version: str, cores: int) -> str:
    """Serve a classifier with autoscaling, on a connected cluster; returns when it is ready.

    Args:
        config: address, replicas and batch size.
        folder: the classifier.
        name: the model's name in answers.
        version: the model's version in answers.
        cores: threads that a replica computes with.

    Returns:
        The server's address.
    """
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    from ray import serve

    from headway.serving.app import EncoderApp

    for logger in ("ray.serve", "ray._private"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(http_options={"host": config.host, "port": config.port}, logging_config=quiet)
    least, most = config.replicas
    application = EncoderApp.options(  # type: ignore[attr-defined]
        # A replica shares the cores with the others; asking for a whole one would keep all but the
        # first few from ever starting on a small machine.
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=64,
        autoscaling_config={
            "min_replicas": least,
            "max_replicas": most,
            "target_ongoing_requests": 16,
            "upscale_delay_s": 3,
            "downscale_delay_s": 60,
        },
        graceful_shutdown_timeout_s=5,
        graceful_shutdown_wait_loop_s=0.2,
    ).bind(str(folder.resolve()), name, version, config.max_batch_tokens, cores)
    serve.run(application, name=_APPLICATION, route_prefix="/", logging_config=quiet)
    return f"http://{config.host}:{config.port}"


def undeploy() -> None:
    """Take the application down and wait until requests in flight are answered."""
    from ray import serve

    serve.delete(_APPLICATION)
