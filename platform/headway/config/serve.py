"""Settings of the step `serve`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from headway.config.base import Config, Count, Positive
from headway.config.sources import SourceConfig


def _one_or_range(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


Replicas = Annotated[tuple[Count, Positive], BeforeValidator(_one_or_range)]
Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
_Percent = Annotated[float, Field(ge=0.0, le=100.0)]
_ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class ChallengerConfig(Config):
    """Another version of the registered model, tried beside the one that answers."""

    alias: str = Field(min_length=1, description="its alias; while no version has it, nothing is tried")
    percent: _Percent = Field(0.0, description="of the requests are answered by it")
    shadow_percent: _Percent = Field(
        0.0, description="of the others are computed by both versions once more, when idle, and compared"
    )

    @model_validator(mode="after")
    def _does_something(self) -> ChallengerConfig:
        if not self.percent and not self.shadow_percent:
            raise ValueError("percent or shadow_percent must be above 0")
        return self


class ServedModelConfig(Config):
    """One of several models; what is not set is as for all."""

    model: str = Field(min_length=1)
    replicas: Replicas | None = None
    target_queued_tokens: Positive | None = Field(
        None, description="waiting tokens that are worth another replica"
    )
    precision: Precision | None = Field(None, description="as for all models when not set")
    challenger: ChallengerConfig | None = Field(None, description="a version that is tried")


class ServeConfig(Config):
    """The step `serve`: encoders behind HTTP, on Ray Serve."""

    model: str | None = Field(None, min_length=1, description="a folder, a step, or models:/name@alias")
    models: dict[_ModelName, ServedModelConfig] = Field(
        default_factory=dict,
        description="several, instead of `model`: the name that requests give → settings",
    )
    replicas: Replicas = Field(
        (1, 4), description="least and most; with a least of 0 the first request waits for one to start"
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    precision: Precision = Field(
        "auto",
        description="auto: int8 on a CPU if the model was quantised, else bf16 if it is fast, "
        "or fp16 on a GPU without it",
    )
    max_batch_tokens: Positive | None = Field(
        None, description="tokens a replica computes at once; 4,096, or 16,384 on GPUs, if not set"
    )
    queue_tokens: Positive | None = Field(
        None,
        description="tokens that may wait; more are answered with 503. "
        "262,144, or 1,048,576 on GPUs, if not set",
    )
    target_queued_tokens: Positive | None = Field(
        None,
        description="waiting tokens that are worth another replica; 8,192, or 32,768 on GPUs, if not set",
    )
    replica_cpus: Count = Field(
        0,
        description="cores reserved for each replica, for which an autoscaler starts nodes; 0: none",
    )
    replica_gpus: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description="GPU of each replica; a fraction puts several on one. If not set, 1, or a fraction "
        "if the least replicas are more than the GPUs; 0 in a cluster without",
    )
    cuda_graphs: bool = Field(
        True, description="record small packs on a GPU, so that they launch in one call"
    )
    downscale_delay_s: Annotated[float, Field(ge=0.0)] = Field(
        60.0, description="seconds without need for it"
    )
    request_timeout_s: Annotated[float, Field(gt=0.0, le=600.0)] = Field(
        30.0, description="seconds a client waits"
    )
    cache_size: Count = Field(0, description="embeddings kept for texts that come again")
    watch_interval_s: Annotated[float, Field(ge=0.0)] = Field(
        5.0, description="seconds between looks at the alias of models:/name@alias; 0 never looks again"
    )
    challenger: ChallengerConfig | None = Field(None, description="a version that is tried")
    api_keys_file: Path | None = Field(
        None, description="file of keys' SHA-256 digests; needed beyond loopback"
    )
    requests_per_second: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="requests a second of each key"
    )
    ssl_certfile: Path | None = Field(None, description="PEM file, for TLS")
    ssl_keyfile: Path | None = Field(None, description="PEM file, for TLS")
    demo_texts: Count = Field(0, description="held-out texts to ask once it is up")
    demo_source: SourceConfig | None = Field(None, description="where the demo texts come from")

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if (self.model is None) == (not self.models):
            raise ValueError("give model, or models for several; one of the two")
        for least, most in [self.replicas, *(m.replicas for m in self.models.values() if m.replicas)]:
            if least > most:
                raise ValueError(f"replicas [{least}, {most}] should be [least, most]")
        for one in self.each().values():
            _check_challenger(one)
        if self.models and self.demo_texts:
            raise ValueError("demo_texts goes with a single model")
        if self.demo_texts and self.demo_source is None:
            raise ValueError("demo_texts needs a demo_source to take the texts from")
        if self.demo_texts and (self.api_keys_file or self.ssl_certfile):
            raise ValueError("demo_texts are asked in clear text and without a key; leave them out")
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile belong together; give both or neither")
        if self.api_keys_file is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from elsewhere; api_keys_file must be set for that"
            )
        if self.requests_per_second is not None and self.api_keys_file is None:
            raise ValueError("requests_per_second is a limit on keys; set api_keys_file too")
        return self

    @property
    def least_replicas(self) -> int:
        """Of all models together."""
        return sum(settings.replicas[0] for settings in self.each().values())

    def each(self) -> dict[str | None, ServeConfig]:
        """The settings of each model on its own, by the name that requests give; None: the model's own."""
        if self.model is not None:
            return {None: self}
        return {
            name: self.model_copy(update={**dict(_set_fields(one)), "models": {}})
            for name, one in self.models.items()
        }


def _set_fields(one: ServedModelConfig) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in one if value is not None)


def _check_challenger(one: ServeConfig) -> None:
    """Of one model: what is tried must be another alias of what is served."""
    model = str(one.model)
    if one.challenger is None or model.startswith("${"):
        return
    if not model.startswith("models:/") or "@" not in model:
        raise ValueError(f"challenger goes with models:/name@alias, not with {model!r}")
    if model.endswith(f"@{one.challenger.alias}"):
        raise ValueError(f"challenger's alias {one.challenger.alias!r} is the one that is served")
    if not one.watch_interval_s:
        raise ValueError("challenger needs watch_interval_s above 0: its alias must be looked at")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
