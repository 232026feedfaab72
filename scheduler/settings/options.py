"""The options of ``up`` and ``scheduler``, as data for ``serve``, and the functions that parse them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from galactica.scheduler.settings.broker import BusOptions

DEFAULT_PORT = 7_400

_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]+):(?P<port>\d{1,5})")


class RuntimeChoice(StrEnum):
    PROCESS = "process"
    DOCKER = "docker"


@dataclass(frozen=True, slots=True)
class Address:
    """``port`` 0: any free port. An IPv6 ``host`` has no brackets here; the text form has them."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """``runtime`` None: docker if an engine answers, otherwise process. ``context``: the path of the admin's context
    file. ``stop_cells``: end the cells too at the end. ``bus``: the broker that gets the events, if any."""

    data: Path
    context: Path
    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    runtime: RuntimeChoice | None = None
    labels: dict[str, str] = field(default_factory=dict)
    stop_cells: bool = False
    bus: BusOptions | None = None


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """``fleet``: the fleet's name, fixed when its CA is made. ``providers``: the providers file; None: the file in
    ``data``, if there is one. ``regrow``: all but the CA is lost, and the fleet's agents know what it wants."""

    data: Path
    context: Path
    fleet: str = "galactica"
    listen: Address = Address("0.0.0.0", DEFAULT_PORT)  # noqa: S104 - every port of it asks for a certificate
    enrol_listen: Address = Address("0.0.0.0", DEFAULT_PORT + 1)  # noqa: S104
    bus: BusOptions | None = None
    providers: Path | None = None
    regrow: bool = False


def default_data() -> Path:
    """The default data directory on this machine."""
    if os.geteuid() == 0:
        return Path("/var/lib/galactica")
    return Path.home() / ".local" / "share" / "galactica"


def parse_address(text: str) -> Address:
    """``HOST:PORT``. Raises ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        raise ValueError(f"invalid address {text!r}: write HOST:PORT, for example 127.0.0.1:{DEFAULT_PORT}")
    return Address(match["host"].strip("[]"), int(match["port"]))


def next_port(address: Address) -> Address:
    """The default address for enrolment: the next port after the link's. Raises ValueError."""
    if address.port == 65_535:
        raise ValueError(
            "enrolment uses the next port, but 65535 is the last one; write --enrol-listen HOST:PORT"
        )
    return Address(address.host, address.port + 1 if address.port else 0)


def parse_labels(texts: list[str]) -> dict[str, str]:
    """Each ``KEY=VALUE``. Raises ValueError."""
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"invalid label {text!r}: write KEY=VALUE, for example zone=a")
        if labels.setdefault(key, value) != value:
            raise ValueError(f"duplicate label {key!r} with different values")
    return labels
