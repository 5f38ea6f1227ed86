"""What a user hears while a server does not come up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray import serve

from headway.serving import start_up
from headway.serving.start_up import wait_until_running


def application(status: str, **messages: str) -> SimpleNamespace:
    deployments = {
        name: SimpleNamespace(status="UPDATING" if message else "HEALTHY", message=message)
        for name, message in messages.items()
    }
    return SimpleNamespace(status=status, message="", deployments=deployments)


@pytest.fixture
def scripted(monkeypatch):
    """Lets Ray Serve say one thing a second."""

    def script(*said: SimpleNamespace) -> None:
        clock = iter(range(1000))
        applications = iter(said)
        monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"it": next(applications)}))
        monkeypatch.setattr(start_up.time, "monotonic", lambda: float(next(clock)))
        monkeypatch.setattr(start_up.time, "sleep", lambda seconds: None)

    return script


def test_what_is_waited_for_is_said_once_it_takes_long(scripted):
    waiting = 'Deployment has 1 replicas that wait. Required: {"CPU": 64}'
    slow = application("DEPLOYING", Gateway="", Encoder=f"{waiting}\nmore")
    scripted(*[slow] * 12, application("RUNNING"))
    said: list[str] = []
    wait_until_running("it", said.append)
    assert said == [f"waiting for Encoder to start: {waiting} ({seconds} s)" for seconds in (11, 12)]


def test_a_server_that_comes_up_soon_says_nothing(scripted):
    scripted(*[application("DEPLOYING", Encoder="")] * 5, application("RUNNING"))
    said: list[str] = []
    wait_until_running("it", said.append)
    assert said == []


def test_a_server_that_fails_says_why(scripted):
    failed = application("DEPLOY_FAILED", Gateway="", Encoder="its weights are missing")
    failed.deployments["Encoder"].status = "DEPLOY_FAILED"
    scripted(failed)
    with pytest.raises(RuntimeError, match=r"^the server did not start: its weights are missing$"):
        wait_until_running("it", lambda text: None)
