"""Keys and certificates that change while a server runs."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from certificates import write_certificate
from headway.serving import reloading
from headway.serving.http.auth import Keys
from headway.serving.reloading import followed_files
from headway.serving.settings import GatewaySettings
from waiting import PATIENCE


@pytest.fixture(autouse=True)
def short_looks(monkeypatch):
    monkeypatch.setattr(reloading, "_LOOK_S", 0.01)


def settings(**files: Path) -> GatewaySettings:
    paths: Any = {name: str(path) for name, path in files.items()}
    return GatewaySettings("127.0.0.1", 8000, 1, 1, 1.0, requests_per_second=0.001, **paths)


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def replace(path: Path, content: bytes) -> None:
    """As a careful program writes a file: at once, under another inode."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").rename(path)


@contextlib.asynccontextmanager
async def following(*parts) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(part) for part in followed_files(*parts)]
    assert tasks
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def test_keys_are_those_of_the_file_as_it_is_now_at_the_rates_that_they_had(tmp_path, caplog):
    path = tmp_path / "keys.txt"
    path.write_text(f"{digest('one')} alice\n{digest('two')} bob\n")
    keys = Keys.read(path, 0.001)

    def status(key: str) -> int:
        return keys.admit(f"Bearer {key}".encode())[0]

    async def run() -> None:
        assert (status("one"), status("three")) == (200, 401)
        async with following(settings(api_keys_file=path), keys, None):
            replace(path, f"{digest('one')} alice\n{digest('three')} carol\n".encode())
            await until(lambda: digest("two") not in keys.digests)
            assert status("two") == 401 and status("three") == 200
            assert status("one") == 429, "its one request is used up"
            replace(path, b"no digest\n")
            await until(lambda: "is not a SHA-256 digest" in caplog.text)
            assert sorted(keys.digests) == sorted([digest("one"), digest("three")])
            path.unlink()
            await until(lambda: "cannot be read" in caplog.text)
            replace(path, f"{digest('two')} bob\n".encode())
            await until(lambda: keys.digests == [digest("two")])

    asyncio.run(run())


def test_keys_stay_on_a_machine_that_does_not_have_their_file(tmp_path, caplog):
    keys = Keys(frozenset({digest("one")}), None)

    async def run() -> None:
        async with following(settings(api_keys_file=tmp_path / "elsewhere"), keys, None):
            await asyncio.sleep(0.1)

    asyncio.run(run())
    assert keys.digests == [digest("one")] and not caplog.records


def test_new_connections_get_the_new_certificate_and_a_wrong_pair_is_not_taken(tmp_path, caplog):
    (tmp_path / "new").mkdir()
    certificate, key = write_certificate(tmp_path)
    new_certificate, new_key = write_certificate(tmp_path / "new")
    old, new = (ssl.PEM_cert_to_DER_cert(path.read_text()) for path in (certificate, new_certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def shown(port: int) -> bytes:
        """The certificate that a client sees."""
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
        writer.close()
        return writer.get_extra_info("ssl_object").getpeercert(binary_form=True)

    async def run() -> None:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        async with server, following(settings(ssl_certfile=certificate, ssl_keyfile=key), None, context):
            assert await shown(port) == old
            new_certificate.replace(certificate)
            await until(lambda: "what was read before stays" in caplog.text)
            assert await shown(port) == old
            new_key.replace(key)
            async with asyncio.timeout(PATIENCE):
                while await shown(port) != new:
                    await asyncio.sleep(0.01)

    asyncio.run(run())
