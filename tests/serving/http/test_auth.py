"""API keys, and the rate of each."""

import asyncio
import hashlib

import pytest

from headway.config.base import ConfigError
from headway.serving.http.auth import Authentication, Keys


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_only_known_keys_may_ask(serving):
    async def run():
        keys = Keys(frozenset({digest("one"), digest("two")}), None)
        async with serving("embeddings", keys=keys) as server:
            body = {"input": "x"}
            for headers in ({}, bearer("three"), {"authorization": "one"}, bearer(digest("one"))):
                response = await server.client.post("/v1/embeddings", json=body, headers=headers)
                assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            for key in ("one", "two"):
                response = await server.client.post("/v1/embeddings", json=body, headers=bearer(key))
                assert response.status_code == 200
            assert (await server.client.get("/metrics")).status_code == 401
            assert (await server.client.get("/health/ready")).status_code == 200
            assert len(server.replica.packs) == 1 or len(server.replica.packs) == 2

    asyncio.run(run())


def test_each_key_has_its_own_rate(serving):
    async def run():
        keys = Keys(frozenset({digest("one"), digest("two")}), 0.001)  # so slow that no machine is too slow
        async with serving("embeddings", keys=keys) as server:
            assert (await server.client.get("/v1/models", headers=bearer("one"))).status_code == 200
            refused = await server.client.get("/v1/models", headers=bearer("one"))
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert (await server.client.get("/v1/models", headers=bearer("two"))).status_code == 200

    asyncio.run(run())


def test_keys_are_read_from_digests_only(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{digest('one')} alice\n\n{digest('two')}\n")
    assert Keys.read(path, None).admit(b"Bearer one").status == 200
    path.write_text("a-plain-key\n")
    with pytest.raises(ConfigError, match=r"line 1 .* is not a SHA-256 digest"):
        Keys.read(path, None)
    path.write_text("")
    with pytest.raises(ConfigError, match="holds no digest"):
        Keys.read(path, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys.read(tmp_path / "none", None)


@pytest.mark.parametrize(
    ("keys", "path", "headers", "caller"),
    [
        (True, "/v1/models", bearer("one"), digest("one")),
        (True, "/v1/models", bearer("three"), None),
        (True, "/v1/models", {}, None),
        (True, "/health/live", {}, None),
        (False, "/v1/models", {}, "10.0.0.1 4000"),
    ],
)
def test_who_is_let_in_has_a_name(keys, path, headers, caller):
    """By which shares are fair, and connections are told from those of strangers."""

    async def let_in(scope, receive, send):
        assert scope["state"].get("caller") == caller

    async def receive():
        return {"type": "http.disconnect"}

    async def send(message):
        pass

    known = Keys(frozenset({digest("one")}), None) if keys else None
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "headers": raw, "client": ("10.0.0.1", 4000), "state": {}}
    asyncio.run(Authentication(let_in, known)(scope, receive, send))
    assert scope["state"].get("caller") == caller
