"""Hosts for measurements: network namespaces, each with one cable to a router that is a namespace too.

The scheduler stays on this machine, which has a cable of its own. Packets are dropped in the router, as a bad network
does it, so neither end learns of it. Nothing is asked of this machine's own firewall. Needs root, iproute2, iptables.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

NETS = range(64, 192)
"""Second bytes of 10.N.0.0/16."""


class Host(NamedTuple):
    """``prefix``: what comes before a command that is to run there."""

    name: str
    namespace: str

    @property
    def prefix(self) -> list[str]:
        # Not ``ip netns exec``, which hides the control groups.
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]


class Hosts:
    """``address``: this machine's own on that network."""

    def __init__(self, count: int) -> None:
        net = _free_net()
        self.address = f"10.{net}.0.1"
        self._cable = f"gxb{os.getpid()}"
        self._router = f"{self._cable}-router"
        self._namespaces = [self._router]
        try:
            self._build_router(net)
            self.all = [self._add(net, number) for number in range(1, count + 1)]
        except BaseException:
            self.remove()
            raise

    def cut(self, host: Host) -> None:
        """Pull its cable."""
        _ip("-n", host.namespace, "link", "set", "eth0", "down")

    def lose(self, fraction: float) -> None:
        """That share of all packets from now on, each way."""
        rule = [
            "FORWARD",
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            str(fraction),
            "-j",
            "DROP",
        ]
        self._in_router("iptables", "-A", *rule)

    def cut_scheduler_off(self) -> None:
        """Nobody reaches it, and it reaches nobody; hosts still reach each other."""
        for way in ("-i", "-o"):
            self._in_router("iptables", "-I", "FORWARD", way, "uplink", "-j", "DROP")

    def let_scheduler_in(self) -> None:
        for way in ("-i", "-o"):
            self._in_router("iptables", "-D", "FORWARD", way, "uplink", "-j", "DROP")

    def remove(self) -> None:
        """Cables go with the namespaces that they end in."""
        for namespace in self._namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)

    def _build_router(self, net: int) -> None:
        _ip("netns", "add", self._router)
        self._in_router("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        _ip("link", "add", self._cable, "type", "veth", "peer", "name", "uplink", "netns", self._router)
        _ip("addr", "add", f"{self.address}/30", "dev", self._cable)
        _ip("link", "set", self._cable, "up")
        _ip("-n", self._router, "addr", "add", f"10.{net}.0.2/30", "dev", "uplink")
        _ip("-n", self._router, "link", "set", "uplink", "up")
        _ip("route", "add", f"10.{net}.0.0/16", "via", f"10.{net}.0.2")

    def _add(self, net: int, number: int) -> Host:
        host = Host(f"host-{number}", f"{self._cable}-{number}")
        self._namespaces.append(host.namespace)
        _ip("netns", "add", host.namespace)
        port = f"port{number}"
        peer = ["peer", "name", port, "netns", self._router]
        _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", *peer)
        for namespace, device, last in ((host.namespace, "eth0", 1), (self._router, port, 2)):
            _ip("-n", namespace, "addr", "add", f"10.{net}.{number}.{last}/30", "dev", device)
            _ip("-n", namespace, "link", "set", device, "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "route", "add", "default", "via", f"10.{net}.{number}.2")
        return host

    def _in_router(self, *command: str) -> None:
        _run("ip", "netns", "exec", self._router, *command)


@contextlib.contextmanager
def some_hosts(count: int) -> Iterator[Hosts]:
    hosts = Hosts(count)
    try:
        yield hosts
    finally:
        hosts.remove()


def udp_datagrams(pid: int) -> int:
    """How many the network of that process has sent and received."""
    lines = Path(f"/proc/{pid}/net/snmp").read_text().splitlines()
    names, numbers = (line.split()[1:] for line in lines if line.startswith("Udp:"))
    counts = dict(zip(names, map(int, numbers), strict=True))
    return counts["InDatagrams"] + counts["OutDatagrams"]


def _free_net() -> int:
    routes = _run("ip", "route", "show", "table", "all")
    return random.choice([net for net in NETS if f"10.{net}." not in routes])


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout
