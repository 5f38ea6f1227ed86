"""The settings that the gateway and the replicas start with."""

from __future__ import annotations

from dataclasses import dataclass

from headway.config.serve import Precision

_PACKS_IN_TIMEOUT = 3
"""So many replicas can have a client's pack, one after the other, before the client stops waiting."""


def pack_timeout_s(request_timeout_s: float) -> float:
    """Seconds that a replica has for a pack, by what a client waits at most."""
    return request_timeout_s / _PACKS_IN_TIMEOUT


@dataclass(frozen=True)
class BodyLimits:
    """Limits on the bodies of requests.

    Attributes:
        max_bytes: of one body.
        waiting_bytes: of all requests in progress together; see `SharedBuffer` for how many of one client.
        timeout: seconds in which a body must arrive.
    """

    max_bytes: int = 8 * 1024 * 1024
    waiting_bytes: int = 256 * 1024 * 1024
    timeout: float = 10.0


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits on connections, from the moment that one is opened.

    Attributes:
        max_connections: open at the same time.
        max_head_bytes: of a request's head.
        head_timeout: seconds for a handshake of TLS, and for a request's head.
        write_timeout: seconds for which a client may leave an answer unread.
    """

    max_connections: int = 2000
    max_head_bytes: int = 32 * 1024
    head_timeout: float = 10.0
    write_timeout: float = 30.0


@dataclass(frozen=True)
class GatewaySettings:
    """Address and limits of the gateway.

    Attributes:
        host: to listen on.
        port: to listen on.
        pack_tokens: tokens that a replica computes at once.
        queue_tokens: tokens that may wait for a replica.
        request_timeout_s: seconds that a client waits at most.
        cache_size: embeddings kept for texts that come again.
        max_request_tokens: of one request; half of `queue_tokens` if None.
        bodies: limits on the bodies of requests.
        connections: limits on connections.
        key_digests: SHA-256 digests of the keys that may ask; without any, everybody may.
        api_keys_file: with the digests, read again when it changes, if the gateway's machine has it.
        requests_per_second: that each key may send; None for any number.
        ssl_certfile: PEM file, for TLS; read again when it changes.
        ssl_keyfile: PEM file, for TLS; read again when it changes.
        scale_to_zero: models that may have no replica until they are asked.
        deployment: tells this deployment from others on the cluster; its gateways keep their state by it.
    """

    host: str
    port: int
    pack_tokens: int
    queue_tokens: int
    request_timeout_s: float
    cache_size: int = 0
    max_request_tokens: int | None = None
    bodies: BodyLimits = BodyLimits()
    connections: ConnectionLimits = ConnectionLimits()
    key_digests: tuple[str, ...] = ()
    api_keys_file: str | None = None
    requests_per_second: float | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    scale_to_zero: tuple[str, ...] = ()
    deployment: str = ""


@dataclass(frozen=True)
class ReplicaSettings:
    """How a replica computes.

    Attributes:
        threads: cores that it computes with.
        precision: of weights and products.
        versions: of the model, kept in memory at most.
        cuda_graphs: whether small packs run as CUDA graphs on a GPU.
        pack_timeout_s: seconds after which a pack that should be done long ago ends the replica.
    """

    threads: int
    precision: Precision = "auto"
    versions: int = 2
    cuda_graphs: bool = True
    pack_timeout_s: float = 10.0
