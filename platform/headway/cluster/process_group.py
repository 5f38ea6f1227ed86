"""A process group of workers on several machines, which meet at the addresses that Ray knows."""

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
    """Like Ray Train's own config, but with the network interface that Ray uses.

    Gloo would look up the machine's name, which by default on Debian gives 127.0.1.1: the other workers would
    then look for it on themselves.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """The class that starts the group."""
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
    """The name of this machine's network interface with an address; None if there is none."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    return None
