"""What is wanted: the immutable spec of a cell with its digest, and the group that wants so many of them."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum

import msgspec
from msgspec import Struct

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A group's or label-like name: RFC 1123's label, so that it can be a DNS name."""


class GroupKind(StrEnum):
    SERVICE = "service"
    POOL = "pool"


class RuntimeKind(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"
    SERVER = "server"
    """The cell is a whole server; a provider makes it, no agent does."""


class Resources(Struct, frozen=True, omit_defaults=True):
    """Limits of a cell, or a server's size. 0 means none stated."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    pids: int = 0


class HttpProbe(Struct, frozen=True, tag="http"):
    port: str
    path: str = "/"


class TcpProbe(Struct, frozen=True, tag="tcp"):
    port: str


class ExecProbe(Struct, frozen=True, tag="exec"):
    command: tuple[str, ...]


class GrpcProbe(Struct, frozen=True, tag="grpc"):
    port: str
    service: str = ""


Probe = HttpProbe | TcpProbe | ExecProbe | GrpcProbe


class HealthSpec(Struct, frozen=True):
    """How a cell is probed. ``probe`` None: a cell that runs is healthy."""

    probe: Probe | None = None
    every_seconds: float = 1.0
    timeout_seconds: float = 1.0
    sick_after: int = 3
    boot_within_seconds: float = 60.0


class Stop(Struct, frozen=True):
    signal: str = "SIGTERM"
    grace_seconds: float = 10.0


class Spread(StrEnum):
    """How a group's cells are placed: the server with the fewest of them first, or as few servers as possible."""

    SERVER = "server"
    NONE = "none"


class Placement(Struct, frozen=True):
    """``spread``: a ``Spread``; ``validation`` refuses any other text, with a hint."""

    spread: str = Spread.SERVER
    require: dict[str, str] = {}


class ServerBody(Struct, frozen=True):
    """What a provider makes a server from. ``body_json``: one JSON object that only the provider understands."""

    provider: str
    body_json: str = "{}"
    labels: dict[str, str] = {}


class Spec(Struct, frozen=True):
    """The immutable description of a cell. Dictionaries are never changed once they are in here.

    ``server`` is there for runtime SERVER alone; of the other fields such a spec uses only ``health``'s boot_within."""

    runtime: RuntimeKind
    image: str = ""
    command: tuple[str, ...] = ()
    ports: dict[str, int] = {}
    env: dict[str, str] = {}
    resources: Resources = Resources()
    health: HealthSpec = HealthSpec()
    stop: Stop = Stop()
    writable: tuple[str, ...] = ()
    placement: Placement = Placement()
    server: ServerBody | None = None
    exclusive: bool = False
    """Never two cells of one slot alive at once: the next is ordered only on proof that the one before is gone."""


def fixed_ports(spec: Spec) -> tuple[int, ...]:
    """The ports that a cell takes on its server: a container has ports of its own."""
    if spec.runtime is not RuntimeKind.PROCESS:
        return ()
    return tuple(sorted({number for number in spec.ports.values() if number}))


def digest_of(spec: Spec) -> str:
    """SHA-256 (hex) over the canonical form: JSON, every field, keys sorted."""
    return hashlib.sha256(msgspec.json.encode(spec, order="deterministic")).hexdigest()


class Replace(Struct, frozen=True):
    """How fast a pool may change: extra servers at once, missing ones at once, and at most ``count`` replacements
    in each window (0: no limit)."""

    surge: int = 1
    unavailable: int = 0
    count: int = 0
    window_seconds: float = 3600.0


class Group(Struct, frozen=True):
    """A wanted set of identical cells. What is not in ``spec`` may change without replacing a cell."""

    kind: GroupKind
    name: str
    replicas: int
    spec: Spec
    max_age_seconds: float = 0.0
    """Cells older than this (give or take a tenth) are replaced although they are well; 0: never."""
    replace: Replace = Replace()
    lease_seconds: float = 0.0
    """Pools: how long a server's silence is tolerated; 0: as long as the fleet's tempo says."""
    cut_off_after_seconds: float = 300.0
    """Pools: how long a server that only neighbours can reach keeps its cells."""
    replace_touched: bool = True
    """A cell that differs from its spec is replaced; else it is only reported."""
    healthy_for_seconds: float = 5.0
    """A successor is proven when it was READY and well for this long. Its predecessor stays until then."""
