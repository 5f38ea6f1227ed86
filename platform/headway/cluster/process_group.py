"""The process group of workers on several machines, each met at the address by which Ray knows it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.train.torch import TorchConfig

_DefaultBackend: Any = TorchConfig().backend_cls


@dataclass
class AtNodeAddresses(TorchConfig):
    """As Ray Train's own, which leaves it to gloo to find a worker's address.

    Gloo looks the machine's name up, and on many (Debian's default) that leads to 127.0.1.1: the others would
    then seek it on themselves.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """What starts the group."""
        return _AtNodeAddresses


class _AtNodeAddresses(_DefaultBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_use_interface_of_node)
        super().on_start(worker_group, backend_config)


def _use_interface_of_node() -> None:
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Name of this machine's network interface with an address; None if there is none."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
