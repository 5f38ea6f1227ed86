"""Addresses of IPv4 and IPv6 that a server can listen on, and how a client writes them."""

from __future__ import annotations

import socket

import pytest

from headway.config.base import ConfigError
from headway.config.serve import ServeConfig
from headway.serving.address import check_port, listener, url_of


@pytest.mark.parametrize(("host", "written"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_a_server_listens_in_ipv4_and_in_ipv6(host, written):
    with listener(host, 0, beside_others=True) as bound:
        port = bound.getsockname()[1]
        bound.listen()
        with pytest.raises(
            ConfigError, match=f"^port: cannot listen on {host}:{port}: Address already in use"
        ):
            check_port(host, port)
        assert url_of(ServeConfig(model="x", host=host, port=port)) == f"http://{written}:{port}"
        with socket.create_connection((host, port)):
            pass
    check_port(host, port)


def test_a_host_that_is_not_this_machine_is_refused():
    with pytest.raises(ConfigError, match=r"^port: cannot listen on 2001:db8::7:8000: "):
        check_port("2001:db8::7", 8000)
