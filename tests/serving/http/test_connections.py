"""Connections that keep a real server waiting: without end, without number, or without reading answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
import uvicorn

from headway.serving.address import listener
from headway.serving.http.connections import Server
from headway.serving.settings import ConnectionLimits
from ports import free_port
from waiting import PATIENCE, wait_until

GOOD = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
SLOW_BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"


async def answer(scope, receive, send):
    """Lets everybody in but those on /stranger, reads bodies, and answers as long as the path says."""
    assert scope["type"] == "http"
    if scope["path"] != "/stranger":
        scope["state"]["caller"] = "someone"
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    if message["type"] == "http.disconnect":
        return
    body = b"x" * int(scope["query_string"] or 1)
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, int]]]:
    """A function that serves `answer` with some limits; returns the address."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(**limits: float) -> tuple[str, int]:
        config = uvicorn.Config(
            answer,
            log_level="error",
            lifespan="off",
            ws="none",
            timeout_keep_alive=int(PATIENCE),
            timeout_graceful_shutdown=1,
        )
        server, port = Server(config, ConnectionLimits(**limits)), free_port()  # type: ignore[arg-type]
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener("127.0.0.1", port)])))
        thread.start()
        running.append((server, thread))
        wait_until(lambda: server.started, 0.01)
        return "127.0.0.1", port

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(PATIENCE)


def new_client() -> httpx.Client:
    """A client that never closes a connection by itself."""
    return httpx.Client(trust_env=False, timeout=PATIENCE, limits=httpx.Limits(keepalive_expiry=None))


def ask(address: tuple[str, int], request: bytes = GOOD) -> bytes:
    """The first part of an answer, on a connection of its own."""
    with socket.create_connection(address, timeout=PATIENCE) as client:
        client.sendall(request)
        return client.recv(10_000)


def drip(client: socket.socket, part: bytes) -> bool:
    """Send a little more; whether the server has closed the connection."""
    with contextlib.suppress(ConnectionError):
        client.sendall(part)
    return is_closed(client)


def is_closed(client: socket.socket) -> bool:
    """Whether the server has closed a connection, on which it has nothing more to say."""
    client.settimeout(0.0)
    try:
        while client.recv(10_000):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def test_two_thousand_idle_sockets_keep_nobody_out(serve):
    address = serve(max_connections=500, head_timeout=PATIENCE)
    with contextlib.ExitStack() as stack, new_client() as client:
        url = f"http://{address[0]}:{address[1]}/"
        stream = client.get(url).extensions["network_stream"]
        idle = [stack.enter_context(socket.create_connection(address)) for _ in range(2000)]
        assert ask(address).startswith(b"HTTP/1.1 200")
        wait_until(lambda: sum(map(is_closed, idle)) >= 1500)
        # Those that came first were closed first.
        assert [is_closed(one) for one in idle[:1500]] == [True] * 1500
        assert not any(is_closed(one) for one in idle[-400:])
        # Who was let in before is not put out by strangers.
        again = client.get(url)
        assert again.status_code == 200 and again.extensions["network_stream"] is stream


def test_idle_sockets_and_heads_without_end_are_closed_in_time(serve):
    address = serve(head_timeout=0.5)
    with contextlib.ExitStack() as stack:
        silent, dripping, between = (stack.enter_context(socket.create_connection(address)) for _ in range(3))
        between.sendall(GOOD)
        assert between.recv(10_000).startswith(b"HTTP/1.1 200")
        dripping.sendall(b"GET / HTTP/1.1\r\nx: ")
        wait_until(lambda: drip(dripping, b"y"), 0.05)
        wait_until(lambda: drip(between, b"\r\n"), 0.05)  # belongs to no request
        wait_until(lambda: is_closed(silent))
        assert ask(address).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("parts", [1, 50])
def test_a_head_that_is_too_large_is_refused(serve, parts):
    address = serve(max_head_bytes=10_000, head_timeout=PATIENCE)
    head = b"GET / HTTP/1.1\r\nx: " + b"y" * 9_000 + b"\r\n\r\n"
    assert ask(address, head).startswith(b"HTTP/1.1 200")
    head = b"GET / HTTP/1.1\r\nx: " + b"y" * 15_000 + (b"\r\n\r\n" if parts == 1 else b"")
    with socket.create_connection(address, timeout=PATIENCE) as client:
        with contextlib.suppress(ConnectionError):  # closed before all was sent
            for i in range(parts):
                client.sendall(head[i * len(head) // parts : (i + 1) * len(head) // parts])
                time.sleep(0.01)
        assert client.recv(10_000).startswith(b"HTTP/1.1 431")
        wait_until(lambda: is_closed(client))


def test_bodies_that_drip_make_room_for_others(serve):
    address = serve(max_connections=50)
    with contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(socket.create_connection(address)) for _ in range(100)]
        for client in dripping:
            with contextlib.suppress(ConnectionError):
                client.sendall(SLOW_BODY + b"x")
        assert ask(address).startswith(b"HTTP/1.1 200")
        assert ask(address, SLOW_BODY + b"x" * 100).startswith(b"HTTP/1.1 200")
        wait_until(lambda: sum(map(is_closed, dripping)) >= 50)


def test_a_client_reads_why_its_body_is_too_large(live):
    """Though it is still sending when the server has decided."""
    host, port = live.removeprefix("http://").split(":")
    head = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
        client.sendall(head + b" " * 20_000_000)
        answer = client.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 413") and b"connection: close" in answer
        wait_until(lambda: is_closed(client))


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(serve):
    address = serve(write_timeout=0.5)
    with socket.create_connection(address) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        client.sendall(b"GET /?50000000 HTTP/1.1\r\nhost: x\r\n\r\n")
        received = len(client.recv(1000))
        time.sleep(2.0)
        with contextlib.suppress(ConnectionError):
            while part := client.recv(1_000_000):
                received += len(part)
        assert received < 50_000_000
    assert len(ask(address, b"GET /?1000 HTTP/1.1\r\nhost: x\r\n\r\n")) > 0
