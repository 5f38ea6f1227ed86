"""Passwords in addresses are shown to nobody."""

from __future__ import annotations

import pytest

from headway.config.base import ConfigError
from headway.redaction import holds_secret, redacted


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://ann:s3cret@mlflow.example:5000/path", "https://ann:***@mlflow.example:5000/path"),
        ("postgresql+psycopg2://ann:s3@cret@db/mlflow", "postgresql+psycopg2://ann:***@db/mlflow"),
        ("mysql://:s3cret@db/mlflow", "mysql://:***@db/mlflow"),
        ("https://s3cret@mlflow.example", "https://***@mlflow.example"),
        (
            "postgresql://db/mlflow?user=ann&password=s3cret&x=1",
            "postgresql://db/mlflow?user=ann&password=***&x=1",
        ),
    ],
)
def test_a_password_in_an_address_is_not_shown(address, shown):
    assert redacted(address) == shown
    assert redacted(f"request to {address!r} failed, {address}") == f"request to {shown!r} failed, {shown}"
    assert holds_secret(address)
    assert str(ConfigError(f"MLFLOW_TRACKING_URI: {address}")) == f"MLFLOW_TRACKING_URI: {shown}"


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////tmp/runs/mlflow.db",
        "http://127.0.0.1:5000",
        "https://mlflow.example/a:b@c",
        "postgresql://ann@db/mlflow",
        "models:/name@alias",
        "mail ann:someone@example.org",
    ],
)
def test_an_address_without_a_password_stays_as_it_is(address):
    assert redacted(address) == address
    assert not holds_secret(address)
