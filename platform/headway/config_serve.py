"""Settings of the step `serve`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from headway.config_base import Config, Count, Positive, SourceConfig


def _one_or_range(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


class ServeConfig(Config):
    """The step `serve`: an encoder behind HTTP, on Ray Serve."""

    model: str = Field(min_length=1, description="a folder, a step, or models:/name@alias")
    replicas: Annotated[tuple[Count, Positive], BeforeValidator(_one_or_range)] = Field(
        (1, 4), description="least and most; with a least of 0 the first request waits for one to start"
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where it is fast")
    max_batch_tokens: Positive = Field(4096, description="tokens a replica computes at once")
    queue_tokens: Positive = Field(262_144, description="tokens that may wait; more are answered with 503")
    replica_tokens: Positive = Field(8192, description="waiting tokens that are worth another replica")
    downscale_delay: Annotated[float, Field(ge=0.0)] = Field(60.0, description="seconds without need for it")
    timeout: Annotated[float, Field(gt=0.0, le=600.0)] = Field(30.0, description="seconds a client waits")
    cache: Count = Field(0, description="embeddings kept for texts that come again")
    watch: Annotated[float, Field(ge=0.0)] = Field(
        5.0, description="seconds between looks at the alias of models:/name@alias; 0 never looks again"
    )
    keys: Path | None = Field(None, description="file of keys' SHA-256 digests; needed beyond loopback")
    rate: Annotated[float, Field(gt=0.0)] | None = Field(None, description="requests a second of each key")
    certificate: Path | None = Field(None, description="PEM file, for TLS")
    private_key: Path | None = Field(None, description="PEM file, for TLS")
    demo_texts: Count = Field(0, description="held-out texts to ask once it is up")
    demo_source: SourceConfig | None = Field(None, description="where the demo texts come from")

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if self.replicas[0] > self.replicas[1]:
            raise ValueError(f"replicas [{self.replicas[0]}, {self.replicas[1]}] should be [least, most]")
        if self.demo_texts and self.demo_source is None:
            raise ValueError("demo_texts needs a demo_source to take the texts from")
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together; give both or neither")
        if self.keys is None and not _is_loopback(self.host):
            raise ValueError(f"host {self.host!r} can be reached from elsewhere; keys must be set for that")
        if self.rate is not None and self.keys is None:
            raise ValueError("rate is a limit on keys; set keys too")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
