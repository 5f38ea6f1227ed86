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
    """Another version of the registered model, tried beside the one that is served."""

    alias: str = Field(
        min_length=1, description="alias of that version; nothing is tried while no version has it"
    )
    percent: _Percent = Field(0.0, description="percentage of requests that it answers")
    shadow_percent: _Percent = Field(
        0.0,
        description="percentage of the other requests that both versions compute again when idle, to compare",
    )

    @model_validator(mode="after")
    def _does_something(self) -> ChallengerConfig:
        if not self.percent and not self.shadow_percent:
            raise ValueError("percent or shadow_percent must be above 0")
        return self


class ServedModelConfig(Config):
    """One of several models; what is not set is as for all models."""

    model: str = Field(min_length=1)
    replicas: Replicas | None = None
    target_queued_tokens: Positive | None = Field(
        None, description="tokens to compute per replica above which another one is started"
    )
    precision: Precision | None = Field(None, description="if not set, as for all models")
    challenger: ChallengerConfig | None = Field(None, description="another version to try on some requests")


class ServeConfig(Config):
    """The step `serve`: encoders behind HTTP, on Ray Serve."""

    model: str | None = Field(None, min_length=1, description="a folder, a step, or models:/name@alias")
    models: dict[_ModelName, ServedModelConfig] = Field(
        default_factory=dict,
        description="several models, instead of `model`: the name that requests give → settings",
    )
    replicas: Replicas = Field(
        (1, 4),
        description="min and max, or one number for both; with a min of 0, the first request waits until "
        "a replica has started",
    )
    application: _ModelName | None = Field(
        None,
        description="its name on Ray Serve, which others may use too; after its address if not set",
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    precision: Precision = Field(
        "auto",
        description="auto is int8 on a CPU if the model was quantised, otherwise bf16 if it is fast, "
        "or fp16 on a GPU without bf16",
    )
    max_batch_tokens: Positive | None = Field(
        None, description="tokens that a replica computes at once; if not set, 4,096, or 16,384 on a GPU"
    )
    queue_tokens: Positive | None = Field(
        None,
        description="tokens that may wait; a request beyond that is answered with 503; "
        "if not set, 262,144, or 1,048,576 on GPUs",
    )
    max_request_tokens: Positive | None = Field(
        None,
        description="tokens of one request, after texts are cut or read in windows; a larger one is answered "
        "with 413; if not set, half of `queue_tokens`, which is also the most",
    )
    max_body_bytes: Positive = Field(
        8 * 1024 * 1024, description="bytes of a request's body; a larger one is answered with 413"
    )
    waiting_body_bytes: Positive = Field(
        256 * 1024 * 1024,
        description="bytes of the bodies of all requests in progress; one beyond that is answered with 503; "
        "at least twice `max_body_bytes`",
    )
    max_connections: Positive = Field(
        2000,
        description="open connections; one more closes the one that has kept the server waiting longest",
    )
    target_queued_tokens: Positive | None = Field(
        None,
        description="tokens that wait or are being computed, per replica, above which another one is "
        "started; if not set, 8,192, or 32,768 on GPUs",
    )
    replica_cpus: Count = Field(
        0,
        description="cores reserved for each replica, for which an autoscaler starts nodes; 0 reserves none",
    )
    replica_gpus: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None,
        description="GPUs for each replica; with a fraction, several share one; if not set, 1, or a fraction "
        "if the min replicas are more than the GPUs, or 0 in a cluster without GPUs",
    )
    cuda_graphs: bool = Field(
        True, description="record small batches on a GPU as CUDA graphs, which launch in one call"
    )
    downscale_delay_s: Annotated[float, Field(ge=0.0)] = Field(
        60.0, description="seconds that a replica stays after it is no longer needed"
    )
    request_timeout_s: Annotated[float, Field(gt=0.0, le=600.0)] = Field(
        30.0, description="seconds after which a request is answered with 504"
    )
    cache_size: Count = Field(0, description="number of embeddings that are kept for texts that come again")
    watch_interval_s: Annotated[float, Field(ge=0.0)] = Field(
        5.0,
        description="seconds between checks of the alias in models:/name@alias; 0 checks it once",
    )
    challenger: ChallengerConfig | None = Field(None, description="another version to try on some requests")
    api_keys_file: Path | None = Field(
        None,
        description="file with SHA-256 digests of API keys; required unless `host` is a loopback address",
    )
    requests_per_second: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="rate limit of each key"
    )
    ssl_certfile: Path | None = Field(None, description="PEM file with the certificate, for TLS")
    ssl_keyfile: Path | None = Field(None, description="PEM file with the private key, for TLS")
    demo_texts: Count = Field(0, description="how many held-out texts to classify once the server is up")
    demo_source: SourceConfig | None = Field(None, description="source of the demo texts")

    @model_validator(mode="after")
    def _consistent(self) -> ServeConfig:
        if (self.model is None) == (not self.models):
            raise ValueError("give model, or models for several, not both")
        for minimum, maximum in [self.replicas, *(m.replicas for m in self.models.values() if m.replicas)]:
            if minimum > maximum:
                raise ValueError(f"replicas [{minimum}, {maximum}] should be [min, max]")
        for one in self.each().values():
            _check_challenger(one)
        if self.models and self.demo_texts:
            raise ValueError("demo_texts goes with a single model")
        if self.demo_texts and self.demo_source is None:
            raise ValueError("demo_texts needs a demo_source to take the texts from")
        if self.demo_texts and (self.api_keys_file or self.ssl_certfile):
            raise ValueError(
                "demo_texts does not go with api_keys_file or TLS: texts are sent without a key, in clear"
            )
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together; give both or neither")
        if self.api_keys_file is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines; api_keys_file must be set for that"
            )
        if self.requests_per_second is not None and self.api_keys_file is None:
            raise ValueError("requests_per_second limits each key; set api_keys_file too")
        if self.waiting_body_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                f"waiting_body_bytes must be at least twice max_body_bytes, {2 * self.max_body_bytes:,}: one "
                "client gets half of them"
            )
        return self

    @property
    def min_replicas(self) -> int:
        """The minimum number of replicas, of all models together."""
        return sum(settings.replicas[0] for settings in self.each().values())

    def each(self) -> dict[str | None, ServeConfig]:
        """The settings of each model, by the name that requests give; None is the model's own name."""
        if self.model is not None:
            return {None: self}
        return {
            name: self.model_copy(update={**dict(_set_fields(one)), "models": {}})
            for name, one in self.models.items()
        }


def _set_fields(one: ServedModelConfig) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in one if value is not None)


def _check_challenger(one: ServeConfig) -> None:
    """Check that the challenger is another alias of the model that is served."""
    model = str(one.model)
    if one.challenger is None or model.startswith("${"):
        return
    if not model.startswith("models:/") or "@" not in model:
        raise ValueError(f"challenger goes with models:/name@alias, not with {model!r}")
    if model.endswith(f"@{one.challenger.alias}"):
        raise ValueError(f"challenger.alias {one.challenger.alias!r} is the alias that is served already")
    if not one.watch_interval_s:
        raise ValueError("challenger needs watch_interval_s above 0, so that its alias is checked")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
