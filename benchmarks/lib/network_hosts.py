"""Hosts on this machine: network namespaces on a bridge, each with its own address, processes and sshd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_TOOLS = {"ip": "iproute2", "unshare": "util-linux", "sshd": "openssh-server", "ssh-keygen": "openssh-client"}
_TOOLS |= {"rsync": "rsync"}
_PATIENCE_SECONDS = 20.0

# Each host has a home and Ray's session files to itself; the rest of the disk they share.
_BOOT = """
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/ray /tmp/ray
hostname {name}
exec {sshd} -D -e -f {folder}/sshd_config 2> {folder}/sshd.log
"""
_SSHD = """
Port 22
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
"""


def problem() -> str | None:
    """Why this machine cannot have such hosts; None where it can."""
    for tool, package in _TOOLS.items():
        if not _path(tool):
            return f"{tool} is missing (package {package})"
    if os.geteuid() != 0:
        return "namespaces need root"
    probe = f"hwprobe{os.getpid()}"
    for command in (
        ["ip", "netns", "add", probe],
        ["ip", "link", "add", f"{probe}"[:15], "type", "bridge"],
        ["unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "true"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            break
    subprocess.run(["ip", "link", "delete", f"{probe}"[:15]], capture_output=True)
    subprocess.run(["ip", "netns", "delete", probe], capture_output=True)
    return f"{' '.join(command)}: {done.stderr.strip()}" if done.returncode else None


def _path(tool: str) -> str | None:
    return shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class NetworkHosts:
    """Hosts with addresses of their own, which this machine reaches over SSH as root.

    Args:
        names: of the hosts.
        folder: for their keys, homes and logs.

    Attributes:
        addresses: of each host, by its name.
        key: file of the private key that opens all of them.
    """

    def __init__(self, names: list[str], folder: Path) -> None:
        self._folder = folder
        self._mark = f"hw{os.getpid() % 100_000}"
        self._network = f"10.231.{os.getpid() % 250}"
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses = {name: f"{self._network}.{place + 1}" for place, name in enumerate(names)}
        self.key = folder / "keys" / "user"
        self.key.parent.mkdir(parents=True)
        for name in ("user", "host"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key.parent / name))
        Path("/run/sshd").mkdir(exist_ok=True)
        Path("/tmp/ray").mkdir(exist_ok=True)
        try:
            _run("ip", "link", "add", self._mark, "type", "bridge")
            _run("ip", "address", "add", f"{self._network}.254/24", "dev", self._mark)
            _run("ip", "link", "set", self._mark, "up")
            for place, name in enumerate(names):
                self._start(place, name)
            for address in self.addresses.values():
                _wait_for_sshd(address)
        except BaseException:
            self.close()
            raise

    def home(self, name: str) -> Path:
        """A host's home folder."""
        return self._folder / name / "home"

    def cut(self, name: str) -> None:
        """Pull the cable of a host: nothing gets to it or from it, and it is told nothing."""
        _run("ip", "link", "set", self._link(name), "down")

    def join(self, name: str) -> None:
        """Plug the cable of a host in again."""
        _run("ip", "link", "set", self._link(name), "up")

    def kill(self, name: str) -> int:
        """SIGKILL every process of a host but its sshd, as if it had been switched off and on.

        Returns:
            How many there were.
        """
        init = self._init(name)
        space = Path(f"/proc/{init}/ns/pid").readlink()
        killed = 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if (process / "ns/pid").readlink() == space and int(process.name) != init:
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
            except OSError:
                continue  # it has ended by itself
        return killed

    def close(self) -> None:
        """End every process of every host, and leave no network behind."""
        for started in self._started.values():
            started.kill()  # and with it, by --kill-child, the first process of its namespace, and so all
            started.wait()
        for place in range(len(self.addresses)):
            subprocess.run(["ip", "netns", "delete", f"{self._mark}-{place}"], capture_output=True)
            subprocess.run(["ip", "link", "delete", f"{self._mark}-{place}"], capture_output=True)
        subprocess.run(["ip", "link", "delete", self._mark], capture_output=True)

    def _start(self, place: int, name: str) -> None:
        space = link = f"{self._mark}-{place}"
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        _run("ip", "link", "set", link, "master", self._mark, "up")
        _run("ip", "-n", space, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        _run("ip", "-n", space, "link", "set", "eth0", "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        folder = self._folder / name
        for inner in ("home", "ray"):
            (folder / inner).mkdir(parents=True)
        users = [line for line in Path("/etc/passwd").read_text().splitlines() if line[:5] != "root:"]
        root = f"root:x:0:0:root:{folder}/home:/bin/bash"
        (folder / "passwd").write_text("\n".join([root, *users]) + "\n")
        (folder / "sshd_config").write_text(_SSHD.format(keys=self.key.parent))
        boot = _BOOT.format(folder=folder, name=name, sshd=_path("sshd"))
        command = ["ip", "netns", "exec", space, "unshare", "--mount", "--pid", "--uts", "--fork"]
        command += ["--kill-child", "--mount-proc", "bash", "-ec", boot]
        self._started[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=sys.stderr)

    def _link(self, name: str) -> str:
        return f"{self._mark}-{list(self.addresses).index(name)}"

    def _init(self, name: str) -> int:
        outer = self._started[name].pid
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _wait_for_sshd(address: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection((address, 22), timeout=1.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
