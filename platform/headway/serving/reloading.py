"""Reads API keys and certificates again once their files have changed, without a restart."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from headway.config.base import ConfigError
from headway.serving.http.auth import Keys
from headway.serving.settings import GatewaySettings

_log = logging.getLogger(__name__)

_LOOK_S = 2.0

_State = tuple[tuple[int, int, int] | None, ...]


def followed_files(
    settings: GatewaySettings, keys: Keys | None, context: ssl.SSLContext | None
) -> list[Coroutine[Any, Any, None]]:
    """What keeps a gateway's keys and its certificate as their files are; each runs until it is cancelled.

    Args:
        settings: with the paths of the files, which are looked for on the gateway's machine.
        keys: that may ask.
        context: of TLS; connections that are made later get the new certificate.
    """
    following = []
    if keys is not None and settings.api_keys_file is not None:
        path = Path(settings.api_keys_file)
        following.append(follow([path], lambda: keys.replace(Keys.read(path, settings.requests_per_second))))
    if context is not None and settings.ssl_certfile and settings.ssl_keyfile:
        pair = (settings.ssl_certfile, settings.ssl_keyfile)
        following.append(follow([Path(path) for path in pair], lambda: _load_certificate(context, *pair)))
    return following


async def follow(paths: Sequence[Path], read: Callable[[], None]) -> None:
    """Read some files whenever one of them has changed, the first time if they are there.

    They are read once they have stayed as they are from one look to the next: they may be in the middle of
    being written, or one of a pair may come after the other. If they cannot be read, that is logged and
    what was read before stays.

    Args:
        paths: of the files.
        read: reads all of them; on the event loop, since OpenSSL must not use a context that changes.
    """
    known: _State = (None,) * len(paths)
    before = known
    while True:
        await asyncio.sleep(_LOOK_S)
        now = await asyncio.to_thread(_state, paths)
        if now == before and now != known:
            known = now
            try:
                read()
            except (ConfigError, OSError) as error:  # `SSLError` is an `OSError`
                names = ", ".join(map(str, paths))
                _log.error("%s changed and cannot be used; what was read before stays: %s", names, error)
        before = now


def _state(paths: Sequence[Path]) -> _State:
    """What changes with a file's content, or with the file that a link points to; None if there is none."""
    return tuple(_stat(path) for path in paths)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    # Elsewhere first: a certificate whose key does not fit would stay in the context without one.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    context.load_cert_chain(certificate, key)
