"""A server that does not answer is waited for, one that refuses is not."""

from __future__ import annotations

import time

import pytest
from mlflow.exceptions import MlflowException, RestException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from requests import HTTPError, Response
from requests.exceptions import ConnectionError as UploadFailed

from headway.tracking import Tracking
from headway.tracking.outage import PatientClient


class Client:
    """Raises what it is given, one after the other, and then answers."""

    version = 3

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def log_text(self, run_id: str, text: str, name: str) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return f"{run_id} {text} {name}"


@pytest.fixture(autouse=True)
def slept(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("API request to http://ann:s3cret@tracking/api failed with exception refused"),
        MlflowException("API request failed with error code 503", TEMPORARILY_UNAVAILABLE),
        UploadFailed("refused"),
    ],
)
def test_a_call_is_repeated_until_the_server_answers(error, slept, caplog):
    client = Client(error, error)
    assert PatientClient(client, 60.0).log_text("id", "text", name="a.txt") == "id text a.txt"
    assert client.calls == 3
    assert slept == [1.0, 2.0]
    assert "MLflow does not answer; trying again" in caplog.text
    assert "s3cret" not in caplog.text


def forbidden() -> HTTPError:
    response = Response()
    response.status_code = 403
    return HTTPError("forbidden", response=response)


@pytest.mark.parametrize(
    "error",
    [
        MlflowException("name too long", INVALID_PARAMETER_VALUE),
        RestException({"error_code": "INTERNAL_ERROR", "message": "a mistake of the server's"}),
        FileNotFoundError("text.txt"),
        forbidden(),
    ],
)
def test_what_is_refused_is_told_at_once(error, slept):
    client = Client(error)
    with pytest.raises(type(error)):
        PatientClient(client, 60.0).log_text("id", "text", "a.txt")
    assert not slept


def test_a_server_that_stays_away_is_an_error_in_the_end(slept):
    client = Client(*[MlflowException("refused")] * 9)
    with pytest.raises(MlflowException, match="refused"):
        PatientClient(client, 0.5).log_text("id", "text", "a.txt")
    assert client.calls == 1


def test_what_is_no_call_is_handed_on():
    assert PatientClient(Client(), 1.0).version == 3


def test_only_servers_are_waited_for(tmp_path):
    assert Tracking("sqlite:///x.db", tmp_path).max_seconds_away == 0.0
    assert Tracking("http://127.0.0.1:1", tmp_path).max_seconds_away > 0.0
