"""Settings of `serve` that do not go together, each told in one line."""

import pytest

from headway.config.base import ConfigError
from headway.config.loading import validate
from headway.config.serve import ServeConfig


def _tried(**challenger):
    return {"model": "models:/m@champion", "challenger": challenger}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"host": "0.0.0.0"},
            "host '0.0.0.0' can be reached from other machines; api_keys_file must be set for that",
        ),
        ({"host": "example.org"}, "api_keys_file must be set"),
        ({"requests_per_second": 3.0}, "requests_per_second limits each key; set api_keys_file too"),
        ({"ssl_certfile": "a.pem"}, "ssl_certfile and ssl_keyfile go together"),
        (
            {"api_keys_file": "k", "demo_texts": 3, "demo_source": {"source": "t.csv"}},
            "demo_texts does not go with api_keys_file or TLS",
        ),
        ({"replicas": [3, 2]}, "should be [min, max]"),
        ({"request_timeout_s": 0}, "request_timeout_s: 0 is not allowed"),
        ({"max_request_tokens": 0}, "max_request_tokens: 0 is not allowed"),
        ({"max_connections": 0}, "max_connections: 0 is not allowed"),
        (
            {"max_body_bytes": 2_000, "waiting_body_bytes": 3_999},
            "waiting_body_bytes must be at least twice max_body_bytes, 4,000",
        ),
        ({"precision": "int4"}, "precision: 'int4' is not allowed"),
        ({"replica_gpus": -0.5}, "replica_gpus: -0.5 is not allowed"),
        ({"replica_gpus": 2}, "replica_gpus: 2 is not allowed"),
        ({"model": None}, "give model, or models for several, not both"),
        ({"models": {"a": {"model": "x"}}}, "give model, or models for several, not both"),
        ({"model": None, "models": {"a": {"model": "x", "replicas": [2, 1]}}}, "replicas [2, 1] should be"),
        ({"model": None, "models": {"a/b": {"model": "x"}}}, "models.a/b"),
        (
            {"model": None, "models": {"a": {"model": "x", "cache_size": 3}}},
            "models.a.cache_size: unknown setting",
        ),
        (
            {"challenger": {"alias": "c", "percent": 5}},
            "challenger goes with models:/name@alias, not with 'm'",
        ),
        (
            _tried(alias="champion", percent=5),
            "challenger.alias 'champion' is the alias that is served",
        ),
        (_tried(alias="c"), "challenger: percent or shadow_percent must be above 0"),
        (_tried(alias="c", percent=101), "challenger.percent: 101 is not allowed"),
        (_tried(alias="c", percent=5) | {"watch_interval_s": 0}, "challenger needs watch_interval_s above 0"),
        (
            {"model": None, "models": {"a": {"model": "x", "challenger": {"alias": "c", "percent": 5}}}},
            "challenger goes with models:/name@alias, not with 'x'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings, message):
    with pytest.raises(ConfigError) as refusal:
        validate(ServeConfig, {"model": "m"} | settings)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_each_of_several_models_has_its_own_scaling():
    models = {"a": {"model": "x", "replicas": [0, 2]}, "b": {"model": "y", "precision": "fp32"}}
    each = validate(ServeConfig, {"models": models, "replicas": 3, "cache_size": 7}).each()
    assert {name: (one.model, one.replicas, one.precision, one.cache_size) for name, one in each.items()} == {
        "a": ("x", (0, 2), "auto", 7),
        "b": ("y", (3, 3), "fp32", 7),
    }
    alone = validate(ServeConfig, {"model": "x"})
    assert alone.each() == {None: alone}


def test_loopback_needs_no_key_and_no_replica_may_wait():
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        assert validate(ServeConfig, {"model": "m", "host": host, "replicas": [0, 2]}).replicas == (0, 2)
    assert (
        validate(ServeConfig, {"model": "m", "host": "0.0.0.0", "api_keys_file": "keys.txt"}).api_keys_file
        is not None
    )
