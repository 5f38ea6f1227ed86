"""What the gateway and the replicas are told when they start."""

from __future__ import annotations

from dataclasses import dataclass

from headway.config.serve import Precision


@dataclass(frozen=True)
class GatewaySettings:
    """Address and limits of the gateway.

    Attributes:
        host: to listen on.
        port: to listen on.
        pack_tokens: tokens a replica computes at once.
        queue_tokens: tokens that may wait for a replica.
        request_timeout_s: seconds a client waits at most.
        cache_size: embeddings kept.
        max_body: bytes of a request's body.
        body_timeout: seconds in which a body must have come.
        key_digests: SHA-256 of the keys that may ask; none lets everybody.
        requests_per_second: requests a second of each key; None for any number.
        ssl_certfile: file, for TLS.
        ssl_keyfile: file, for TLS.
    """

    host: str
    port: int
    pack_tokens: int
    queue_tokens: int
    request_timeout_s: float
    cache_size: int = 0
    max_body: int = 32 * 1024 * 1024
    body_timeout: float = 10.0
    key_digests: tuple[str, ...] = ()
    requests_per_second: float | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None


@dataclass(frozen=True)
class ReplicaSettings:
    """How a replica computes.

    Attributes:
        threads: cores that it computes with.
        precision: of weights and products.
        versions: of the model that it keeps in memory at most.
        cuda_graphs: whether small packs on a GPU are recorded.
    """

    threads: int
    precision: Precision = "auto"
    versions: int = 2
    cuda_graphs: bool = True
