"""The settings that the gateway and the replicas start with."""

from __future__ import annotations

from dataclasses import dataclass

from headway.config.serve import Precision


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
        max_body: bytes of a request's body.
        body_timeout: seconds in which a body must arrive.
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
    max_body: int = 32 * 1024 * 1024
    body_timeout: float = 10.0
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
    """

    threads: int
    precision: Precision = "auto"
    versions: int = 2
    cuda_graphs: bool = True
