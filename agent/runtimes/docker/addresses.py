"""Where a container is reached: at its published ports, and at its own address.

The engine's forwarder accepts connections to a published port even if nothing listens in the container. So probes use
the container's own address where this host can reach it.
"""

import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from galactica.v1 import cell_pb2

CONNECT_SECONDS = 2.0
PROC = Path("/proc")
_CREDENTIALS = struct.Struct("3i")
"""pid, uid and gid of the process that listens: unix(7), SO_PEERCRED."""


def published(host: str, spec: cell_pb2.Spec, inspected: Mapping[str, Any]) -> dict[str, str]:
    """Port name to "host:port" as published by the engine on ``host``; empty after the container's end."""
    bound = inspected["NetworkSettings"].get("Ports") or {}
    return {
        name: endpoint(host, bindings[0]["HostPort"])
        for name, number in sorted(spec.ports.items())
        if (bindings := bound.get(f"{number}/tcp"))
    }


def direct(
    spec: cell_pb2.Spec, inspected: Mapping[str, Any], is_own: Callable[[str], bool]
) -> dict[str, str]:
    """Port name to "host:port" at the container's own address; empty if this host cannot reach that.

    This host reaches it if the gateway of the container's network is an address of its own, for which ``is_own`` asks.
    That is not so for an engine elsewhere, a rootless engine, or an agent that is itself in a container. Two engines
    may use the same addresses: ask ``shares_network`` too."""
    networks = inspected["NetworkSettings"].get("Networks") or {}
    for network in networks.values():
        for address, gateway in (("IPAddress", "Gateway"), ("GlobalIPv6Address", "IPv6Gateway")):
            if network.get(address) and network.get(gateway) and is_own(network[gateway]):
                ports = sorted(spec.ports.items())
                return {name: endpoint(network[address], str(number)) for name, number in ports}
    return {}


def endpoint(host: str, number: str) -> str:
    return f"[{host}]:{number}" if ":" in host else f"{host}:{number}"


def shares_network(url: str) -> bool:
    """Whether the engine at that address surely is in this process's network namespace. False if that cannot be told,
    as without the right to look at the engine's process."""
    path = urlsplit(url)
    if path.scheme not in {"unix", "http+unix"}:
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(CONNECT_SECONDS)
            asking.connect(unquote(path.netloc + path.path))
            pid, _, _ = _CREDENTIALS.unpack(
                asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        return (PROC / str(pid) / "ns/net").readlink() == (PROC / "self/ns/net").readlink()
    except OSError:
        return False


def is_own_address(address: str) -> bool:
    """Whether an interface of this host has the address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.bind((address, 0))
    except OSError:
        return False
    return True
