"""Converts an order to the body of a container, and a container's labels to its order.

Everything here is pure. The body is for the Engine API's ``POST /containers/create`` (version 1.41 and newer).
"""

import base64
import binascii
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from galactica.agent.runtimes.port import StartFailed
from galactica.v1 import cell_pb2, link_pb2

FLEET_LABEL = "galactica.fleet"
FLEET_ID_LABEL = "galactica.fleet-id"
SERVER_LABEL = "galactica.server"
CELL_LABEL = "galactica.cell"
DIGEST_LABEL = "galactica.digest"
ORDER_LABEL = "galactica.order"

NAMED_ID_CHARACTERS = 8

TMP = "/tmp"  # noqa: S108 - inside the cell
TMP_OPTIONS = "rw,noexec,nosuid,nodev,size=64m,mode=1777"
"""This memory counts against the cell's limit. Its size is bounded even if the cell has no limit."""

ID_CHARACTERS = 200
"""Limit for ids and digests in reports; schedulers have the same."""

LOG_OPTIONS = {"max-size": "8m", "max-file": "2"}
"""The log of a cell takes at most 16 MiB of the disk."""

CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "NET_BIND_SERVICE", "SETGID", "SETUID")
"""Capabilities that servers need to open a low port and to give up root. Raw sockets, device nodes and the rest are
dropped."""

_PLACEHOLDER = re.compile(r"\{port\.([^{}]*)\}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9-]")


@dataclass(frozen=True, slots=True)
class Scope:
    """Identifies the containers of this agent; it never touches others. ``fleet_id`` tells the fleet from another of
    the same name. ``host``: the address on which ports are published."""

    fleet: str
    fleet_id: str
    server: str
    host: str

    def name_of(self, cell_id: str) -> str:
        """The container's name, one for each cell id: ``web/2.7`` of fleet ``prod`` is
        ``galactica.prod.1f2e3d4c.web.2.7``, with the beginning of the fleet's id."""
        parts = [self.fleet, self.fleet_id[:NAMED_ID_CHARACTERS], *re.split("[/.]", cell_id)]
        return ".".join(["galactica", *map(_escaped, parts)])

    def is_of_fleet(self, labels: Mapping[str, str]) -> bool:
        """Whether a cell is of this fleet. A container without an id was made before containers had one: there the
        name decides."""
        fleet_id = labels.get(FLEET_ID_LABEL)
        return labels.get(FLEET_LABEL) == self.fleet if fleet_id is None else fleet_id == self.fleet_id

    def owns(self, labels: Mapping[str, str]) -> bool:
        return self.is_of_fleet(labels) and labels.get(SERVER_LABEL) == self.server


def _escaped(text: str) -> str:
    return _NOT_IN_NAMES.sub(lambda match: f"_{ord(match[0]):x}_", text)


def body_of(scope: Scope, order: link_pb2.Order, *, init: bool) -> dict[str, Any]:
    """The container to create. ``init``: run the engine's init as process 1, so that signals also end a program that
    does not handle them, and zombies are reaped. Raises StartFailed for an invalid port or placeholder."""
    spec = order.spec
    body: dict[str, Any] = {
        "Image": spec.image,
        "Env": _environment(order),
        "Labels": _labels(scope, order),
        "ExposedPorts": {f"{number}/tcp": {} for number in _ports(spec).values()},
        # Only the agent's probes count; the image's own health check would cost time.
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": spec.stop.signal or "SIGTERM",
        "StopTimeout": math.ceil(spec.stop.grace_ms / 1000),
        "HostConfig": _host_config(scope, spec, init=init),
    }
    if spec.command:
        body["Cmd"] = [_filled(word, spec) for word in spec.command]
    return body


def _host_config(scope: Scope, spec: cell_pb2.Spec, *, init: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "RestartPolicy": {"Name": "no"},
        "ReadonlyRootfs": True,
        "Tmpfs": {TMP: TMP_OPTIONS},
        # Unnamed volumes start with the image's files, work for any user, and are removed with the container.
        "Mounts": [{"Type": "volume", "Target": path} for path in spec.writable if path.rstrip("/") != TMP],
        "SecurityOpt": ["no-new-privileges"],
        "CapDrop": ["ALL"],
        "CapAdd": list(CAPABILITIES),
        "Init": init,
        "LogConfig": {"Type": "json-file", "Config": LOG_OPTIONS},
        "PortBindings": {
            f"{number}/tcp": [{"HostIp": scope.host, "HostPort": ""}] for number in _ports(spec).values()
        },
    }
    limits = spec.resources
    if limits.cpu_millis:
        config["NanoCpus"] = limits.cpu_millis * 1_000_000
    if limits.memory_bytes:
        # Equal: no swap on top of the memory.
        config |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}
    if limits.pids:
        config["PidsLimit"] = limits.pids
    return config


def _ports(spec: cell_pb2.Spec) -> dict[str, int]:
    for name, number in spec.ports.items():
        if not 0 < number < 65_536:
            raise StartFailed(f"invalid port {name}: {number}; a container needs a number from 1 to 65535")
    return dict(spec.ports)


def _labels(scope: Scope, order: link_pb2.Order) -> dict[str, str]:
    return {
        FLEET_LABEL: scope.fleet,
        FLEET_ID_LABEL: scope.fleet_id,
        SERVER_LABEL: scope.server,
        CELL_LABEL: order.cell_id,
        DIGEST_LABEL: order.digest,
        ORDER_LABEL: base64.b64encode(order.SerializeToString(deterministic=True)).decode(),
    }


def _environment(order: link_pb2.Order) -> list[str]:
    spec = order.spec
    values = {name: _filled(value, spec) for name, value in sorted(spec.env.items())}
    values |= {
        f"PORT_{name.upper().replace('-', '_')}": str(number) for name, number in sorted(spec.ports.items())
    }
    values["CELL_ID"] = order.cell_id
    return [f"{name}={value}" for name, value in values.items()]


def _filled(text: str, spec: cell_pb2.Spec) -> str:
    """Replace ``{port.NAME}`` by that port's number inside the container."""

    def number(match: re.Match[str]) -> str:
        if match[1] not in spec.ports:
            names = ", ".join(sorted(spec.ports)) or "none"
            raise StartFailed(f"{match[0]}: the spec has no such port; its ports: {names}")
        return str(spec.ports[match[1]])

    return _PLACEHOLDER.sub(number, text)


def order_of(labels: Mapping[str, str]) -> link_pb2.Order:
    """The order in a container's labels. If it is damaged, only the cell's id and digest, so that the scheduler sees
    the cell and can decommission it."""
    try:
        order = link_pb2.Order.FromString(base64.b64decode(labels.get(ORDER_LABEL, ""), validate=True))
    except (binascii.Error, ValueError, DecodeError):
        order = link_pb2.Order()
    if order.cell_id != labels[CELL_LABEL] or len(order.digest) > ID_CHARACTERS:
        return link_pb2.Order(cell_id=labels[CELL_LABEL], digest=labels.get(DIGEST_LABEL, ""))
    return order


def flaw_of(labels: Mapping[str, str]) -> str:
    """Why the labels do not name a cell that could be reported; empty if they do."""
    for label in (CELL_LABEL, DIGEST_LABEL):
        length = len(labels.get(label, ""))
        if length > ID_CHARACTERS:
            return f"its label {label} has {length} characters; the limit is {ID_CHARACTERS}"
    return "" if labels.get(CELL_LABEL) else f"it has no label {CELL_LABEL}"
