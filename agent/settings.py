"""The agent's command line: what it may say, and what that means."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from galactica import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

TOKEN_VARIABLE = "GALACTICA_TOKEN"  # noqa: S105 - a name, no token
DEFAULT_DATA = Path("/var/lib/galactica-agent")
LABELS_LIMIT = 64
WATCH_OFF = "off"


class StartError(Exception):
    """The agent cannot begin; the message is one line for people."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line says. ``runtimes`` empty: what this host offers. ``enrolment`` empty: where this host
    enrolled, or else the port after ``scheduler``'s. ``token`` and ``token_file``: at most one is not empty."""

    scheduler: str
    enrolment: str
    server_id: str
    data: Path
    runtimes: tuple[str, ...]
    labels: Mapping[str, str]
    stops_cells: bool
    host: str
    token: str = field(repr=False)
    token_file: str
    watch: str = ""
    """"off", ADDRESS:PORT, or empty for an address that is found here and a free port."""
    bus: str = ""
    bus_ca: str = ""
    bus_password_file: str = ""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="galactica-agent",
        description="Run the cells that the scheduler orders on this server, watch them and report.",
        epilog="Exit codes: 0 ended by a signal, 1 refused or failed, 2 wrong usage, "
        "3 the scheduler cannot be reached to enrol.",
    )
    add = command.add_argument
    add("--scheduler", required=True, metavar="HOST:PORT", help="where the scheduler listens for agents")
    add(
        "--enrol",
        default="",
        metavar="HOST:PORT",
        help="its enrolment port (the one that enrolled this host, at first the next one after --scheduler's)",
    )
    token = command.add_mutually_exclusive_group()
    token.add_argument("--token-file", default="", metavar="FILE", help="a file that holds the join token")
    token.add_argument("--token", default="", help=f"the join token; {TOKEN_VARIABLE} does not show in ps")
    add("--id", default="", metavar="NAME", help="what this server is called (its host name)")
    add(
        "--data",
        type=Path,
        default=DEFAULT_DATA,
        metavar="DIR",
        help=f"where it keeps things ({DEFAULT_DATA})",
    )
    add(
        "--runtime",
        action="append",
        default=[],
        choices=("process", "docker"),
        help="what runs cells here; may be given twice (process, and docker where an engine answers)",
    )
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="the address on which cells are published")
    add(
        "--watch",
        default="",
        metavar="ADDRESS:PORT",
        help="where neighbours ping this agent by UDP (--host or the address that leads to the scheduler, "
        "and a free port); off: it watches nobody",
    )
    add(
        "--bus",
        default="",
        metavar="URL",
        help="a broker that holds this agent's last will: mqtt://[USER@]HOST[:PORT], mqtts:// for TLS; "
        "its password in GALACTICA_BUS_PASSWORD or in a file",
    )
    add("--bus-ca", default="", metavar="FILE", help="the CA of the broker's certificate (this machine's)")
    add("--bus-password-file", default="", metavar="FILE", help="a file that holds the broker's password")
    add(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="a label of this server; repeatable"
    )
    add("--stop-cells", action="store_true", help="end the cells too when the agent is told to end")
    add("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    add("--version", action="version", version=f"galactica-agent {__version__}")
    return command


def settings_of(arguments: argparse.Namespace) -> Settings:
    """What they mean; takes the token out of the environment. Raises StartError (wrong usage)."""
    host_and_port(arguments.scheduler)
    host_and_port(arguments.enrol or arguments.scheduler)
    # Out of the environment: what this process starts has no business with it.
    token = os.environ.pop(TOKEN_VARIABLE, "")
    return Settings(
        scheduler=arguments.scheduler,
        enrolment=arguments.enrol,
        server_id=arguments.id,
        data=arguments.data.absolute(),
        runtimes=tuple(dict.fromkeys(arguments.runtime)),
        labels=_labels(arguments.label),
        stops_cells=arguments.stop_cells,
        host=arguments.host,
        token=arguments.token or ("" if arguments.token_file else token),
        token_file=arguments.token_file,
        watch=arguments.watch,
        bus=arguments.bus,
        bus_ca=arguments.bus_ca,
        bus_password_file=arguments.bus_password_file,
    )


def host_and_port(address: str) -> tuple[str, int]:
    """Raises StartError (wrong usage)."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise StartError(f"'{address}' is not HOST:PORT", EXIT_USAGE)
    return host, int(port)


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise StartError(f"the label '{pair}' is not KEY=VALUE", EXIT_USAGE)
        labels[key] = value
    if len(labels) > LABELS_LIMIT:
        raise StartError(f"{len(labels)} labels were given, at most {LABELS_LIMIT} are carried", EXIT_USAGE)
    return labels
