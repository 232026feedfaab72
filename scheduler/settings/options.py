"""What ``up`` and ``scheduler`` were asked for: pure data for ``scheduler.serve``, and the readers of its parts."""

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
    """``port`` 0: any free one. An IPv6 ``host`` has no brackets here, and has them in the text."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """``runtime`` None: docker if an engine answers, else process. ``context``: where the admin's context file goes.
    ``stop_cells``: end the cells too when it ends. ``bus``: the broker that hears of it all, if any."""

    data: Path
    context: Path
    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    runtime: RuntimeChoice | None = None
    labels: dict[str, str] = field(default_factory=dict)
    stop_cells: bool = False
    bus: BusOptions | None = None


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """``fleet``: the fleet's name, fixed when its CA is made. ``providers``: the file that names them; None: the one
    in ``data``, if there is one."""

    data: Path
    context: Path
    fleet: str = "galactica"
    listen: Address = Address("0.0.0.0", DEFAULT_PORT)  # noqa: S104 - every port of it asks for a certificate
    enrol_listen: Address = Address("0.0.0.0", DEFAULT_PORT + 1)  # noqa: S104
    bus: BusOptions | None = None
    providers: Path | None = None


def default_data() -> Path:
    """Where a fleet is kept on this machine."""
    if os.geteuid() == 0:
        return Path("/var/lib/galactica")
    return Path.home() / ".local" / "share" / "galactica"


def parse_address(text: str) -> Address:
    """``HOST:PORT``. Raises ValueError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65_535:
        raise ValueError(f"{text!r} is no address; write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return Address(match["host"].strip("[]"), int(match["port"]))


def next_port(address: Address) -> Address:
    """The enrolment's port beside the link's. Raises ValueError."""
    if address.port == 65_535:
        raise ValueError("there is no port after 65535 for enrolment; write --enrol-listen HOST:PORT")
    return Address(address.host, address.port + 1 if address.port else 0)


def parse_labels(texts: list[str]) -> dict[str, str]:
    """Each ``KEY=VALUE``. Raises ValueError."""
    labels: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"{text!r} is no label; write KEY=VALUE, such as zone=a")
        if labels.setdefault(key, value) != value:
            raise ValueError(f"the label {key!r} is there twice with different values")
    return labels
