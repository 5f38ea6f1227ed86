"""Workers on several machines meet at the addresses by which Ray knows them."""

from __future__ import annotations

from headway.cluster.process_group import interface_of


def test_interface_is_found_by_its_address():
    name = interface_of("127.0.0.1")
    assert name is not None
    assert name.startswith("lo")


def test_an_address_of_another_machine_has_none():
    assert interface_of("192.0.2.77") is None
