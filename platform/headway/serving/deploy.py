"""Starts a server on Ray Serve, and stops it again."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from headway.cluster import connect
from headway.cluster.capacity import Say
from headway.config.serve import ChallengerConfig, ServeConfig
from headway.serving.address import url_of
from headway.serving.autoscaling import UnansweredTokensPolicy
from headway.serving.http.auth import Keys
from headway.serving.resources import gateway_node, gpus_per_replica, load_of, require_replicas
from headway.serving.rollout.watch import AliasWatch, ChallengerWatch
from headway.serving.scheduling.messages import Release
from headway.serving.settings import (
    BodyLimits,
    ConnectionLimits,
    GatewaySettings,
    ReplicaSettings,
    pack_timeout_s,
)
from headway.serving.start_up import wait_until_running
from headway.tracking import Tracking

_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_DRAIN_S = 30.0
_HEALTH_CHECK_TIMEOUT_S = 10.0
"""The third time in a row that a replica does not answer within this time, Ray Serve replaces it."""
_watches: list[AliasWatch] = []
_applications: list[str] = []
"""On Ray Serve, that this process has deployed; others may serve on the same cluster."""


def deploy(config: ServeConfig, releases: Sequence[Release], cores: int, say: Say = lambda text: None) -> str:
    """Serve encoders on a connected cluster, each with its own autoscaling; returns once all are ready.

    Args:
        config: address, replicas and limits.
        releases: a version of each model in the settings, in their order.
        cores: that a replica computes with.
        say: told what is waited for.

    Returns:
        The server's URL.

    Raises:
        ConfigError: the replicas can never fit on the cluster.
    """
    require_replicas(config)
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    connect.start_processes_ahead(1)  # Ray Serve's controller
    connect.start_processes_ahead(1 + config.min_replicas, {})  # the gateway and the replicas
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    application, name = bind_application(config, releases, cores), application_name(config)
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    target = serve.RunTarget(application, name=name, route_prefix=None, logging_config=_QUIET)
    _applications.append(name)
    connect.before_leaving(undeploy)
    serve.run_many([target], wait_for_applications_running=False)
    wait_until_running(name, say)
    return url_of(config)


def application_name(config: ServeConfig) -> str:
    """What the server is called on Ray Serve: as the settings say, or after the one address it can have."""
    return config.application or f"headway-{gateway_node()[0]}-{config.port}"


def bind_application(config: ServeConfig, releases: Sequence[Release], cores: int) -> Any:
    """The gateway and the replicas as an application of Ray Serve; needs a connected cluster.

    Args:
        config: address, replicas and limits.
        releases: the first version of each model in the settings, in their order.
        cores: that a replica computes with.

    Raises:
        ConfigError: the replicas do not fit on the cluster.
    """
    from ray import serve

    from headway.serving.http.gateway import Gateway

    gpus = gpus_per_replica(config)
    served = [release._replace(folder=str(Path(release.folder).resolve())) for release in releases]
    pairs = list(zip(config.each().values(), served, strict=True))
    encoders = {
        release.name: _encoder(settings, release, cores, gpus, number)
        for number, (settings, release) in enumerate(pairs)
    }
    scale_to_zero = tuple(release.name for settings, release in pairs if not settings.min_replicas)
    return serve.deployment(
        Gateway,
        ray_actor_options={"num_cpus": 0, "resources": gateway_node()[1]},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
    ).bind(_settings(config, gpus, scale_to_zero), {release.name: release for release in served}, encoders)


def follow_aliases(config: ServeConfig, tracking: Tracking) -> None:
    """Switch versions when the models' aliases move, until `undeploy`."""
    application = application_name(config)
    switch = partial(_tell_gateway, application, "switch")
    for name, settings in config.each().items():
        if settings.model is None or "@" not in settings.model or not settings.watch_interval_s:
            continue
        _start(AliasWatch(settings.model, tracking, settings.watch_interval_s, switch, name))
        if settings.challenger is not None:
            alias, challenge = (
                settings.challenger.alias,
                partial(_challenge, application, settings.challenger),
            )
            _start(
                ChallengerWatch(settings.model, alias, tracking, settings.watch_interval_s, challenge, name)
            )


def undeploy() -> None:
    """Stop what this process serves once requests in flight are answered; does nothing if that is nothing."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    while _watches:
        _watches.pop().stop()
    while _applications:
        application = _applications.pop()
        # Ray Serve would stop the replicas together with the gateway, which still needs them.
        # KeyError: it is no longer there.
        with contextlib.suppress(RayServeException, RayError, TimeoutError, KeyError):
            _gateway(application).drain.remote().result(timeout_s=_DRAIN_S)
        with contextlib.suppress(RayServeException):
            serve.delete(application)


def _start(watch: AliasWatch) -> None:
    watch.start()
    _watches.append(watch)


def _challenge(application: str, config: ChallengerConfig, name: str, release: Release | None) -> str | None:
    return _tell_gateway(application, "challenge", name, release, config)


def _tell_gateway(application: str, method: str, *arguments: Any) -> str | None:
    import ray

    if not ray.is_initialized():
        sys.exit()  # ends the watch's thread, not the process: the server ended with the cluster
    gateway = _gateway(application)
    problem: str | None = getattr(gateway, method).remote(*arguments).result(timeout_s=600)
    return problem


def _gateway(application: str) -> Any:
    from ray import serve

    return serve.get_deployment_handle("Gateway", application)


def _settings(config: ServeConfig, gpus: float, scale_to_zero: tuple[str, ...]) -> GatewaySettings:
    load = load_of(config, gpus)
    digests = (
        Keys.read(config.api_keys_file, config.requests_per_second).digests if config.api_keys_file else ()
    )
    return GatewaySettings(
        host=config.host,
        port=config.port,
        pack_tokens=load.pack,
        queue_tokens=load.queue,
        request_timeout_s=config.request_timeout_s,
        cache_size=config.cache_size,
        max_request_tokens=config.max_request_tokens,
        bodies=BodyLimits(config.max_body_bytes, config.waiting_body_bytes),
        connections=ConnectionLimits(config.max_connections),
        key_digests=tuple(digests),
        api_keys_file=_absolute(config.api_keys_file),
        requests_per_second=config.requests_per_second,
        ssl_certfile=_absolute(config.ssl_certfile),
        ssl_keyfile=_absolute(config.ssl_keyfile),
        scale_to_zero=scale_to_zero,
        deployment=uuid.uuid4().hex,
    )


def _absolute(path: Path | None) -> str | None:
    """The path for a process that runs in another folder."""
    return None if path is None else str(path.absolute())


def _encoder(config: ServeConfig, release: Release, cores: int, gpus: float, number: int) -> Any:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

    from headway.serving.scheduling.replica import Encoder

    minimum, maximum = config.replicas
    versions = 2 if config.challenger is None else 3
    timeout = pack_timeout_s(config.request_timeout_s)
    settings = ReplicaSettings(cores, config.precision, versions, config.cuda_graphs, timeout)
    scaling = AutoscalingConfig(
        min_replicas=minimum,
        max_replicas=maximum,
        metrics_interval_s=0.5,
        look_back_period_s=2.0,
        upscale_delay_s=1.0,
        downscale_delay_s=config.downscale_delay_s,
        policy=AutoscalingPolicy(
            policy_function=UnansweredTokensPolicy, policy_kwargs={"tokens": load_of(config, gpus).replica}
        ),
    )
    return serve.deployment(
        Encoder,
        name=f"Encoder-{number}" if number else "Encoder",
        # Replicas share the cores unless some are reserved. If each asked for one, only the first few could
        # start on a small machine.
        ray_actor_options={"num_cpus": config.replica_cpus, "num_gpus": gpus},
        max_ongoing_requests=3,
        autoscaling_config=scaling,
        health_check_period_s=2,
        health_check_timeout_s=_HEALTH_CHECK_TIMEOUT_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        graceful_shutdown_wait_loop_s=0.2,
    ).bind(release, settings)
