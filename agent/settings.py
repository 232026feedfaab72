"""The agent's command line: its options, and the settings that they give."""

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
MAINTENANCE_SECONDS = 300.0
MAINTENANCE_LIMIT_SECONDS = 86_400.0


class StartError(Exception):
    """The agent cannot start; the message is one line for people."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings from the command line. ``runtimes`` empty: those that this host offers. ``enrolment`` empty: the
    port that enrolled this host, else the port after ``scheduler``'s. ``token`` and ``token_file``: at most one is
    set."""

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
    """"off", ADDRESS:PORT, or empty: the agent chooses an address and a free port."""
    bus: str = ""
    bus_ca: str = ""
    bus_password_file: str = ""
    maintenance_seconds: float = MAINTENANCE_SECONDS
    """How long the agent may be away after a signal ended it; 0: it asks for no lease."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="galactica-agent",
        description="Run the cells that the scheduler orders on this server, watch them and report.",
        epilog="Exit codes: 0 ended by a signal, 1 refused or failed, 2 wrong usage, "
        "3 cannot reach the scheduler to enrol.",
    )
    add = command.add_argument
    add("--scheduler", required=True, metavar="HOST:PORT", help="address of the scheduler's port for agents")
    add(
        "--enrol",
        default="",
        metavar="HOST:PORT",
        help="address of the scheduler's enrolment port (default: the one that enrolled this host; before that, the "
        "port after --scheduler's)",
    )
    token = command.add_mutually_exclusive_group()
    token.add_argument("--token-file", default="", metavar="FILE", help="file with the join token")
    token.add_argument(
        "--token", default="", help=f"join token; visible in ps, unlike the variable {TOKEN_VARIABLE}"
    )
    add("--id", default="", metavar="NAME", help="name of this server (default: its host name)")
    add(
        "--data",
        type=Path,
        default=DEFAULT_DATA,
        metavar="DIR",
        help=f"data directory (default: {DEFAULT_DATA})",
    )
    add(
        "--runtime",
        action="append",
        default=[],
        choices=("process", "docker"),
        help="runtime for cells; repeatable (default: process, and docker if an engine answers)",
    )
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address on which the ports of cells are published (default: 127.0.0.1)",
    )
    add(
        "--watch",
        default="",
        metavar="ADDRESS:PORT",
        help="UDP address on which neighbours ping this agent (default: --host, or else this server's address on the "
        "way to the scheduler, and a free port); off: take no part in the neighbours' watch",
    )
    add(
        "--bus",
        default="",
        metavar="URL",
        help="message broker that keeps this agent's last will: mqtt://[USER@]HOST[:PORT], mqtts:// for TLS; "
        "give the password in GALACTICA_BUS_PASSWORD or with --bus-password-file",
    )
    add(
        "--bus-ca",
        default="",
        metavar="FILE",
        help="CA of the broker's certificate (default: the CAs that this machine trusts)",
    )
    add("--bus-password-file", default="", metavar="FILE", help="file with the broker's password")
    add("--label", action="append", default=[], metavar="KEY=VALUE", help="label of this server; repeatable")
    add("--stop-cells", action="store_true", help="when a signal ends the agent, end its cells too")
    add(
        "--maintenance",
        type=_maintenance_seconds,
        default=MAINTENANCE_SECONDS,
        metavar="SECONDS",
        help="when a signal ends the agent and its cells live on, ask the scheduler to leave them in traffic for so "
        "long (default: 300; the scheduler's limit is an hour); 0: ask for nothing",
    )
    add(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="log messages of this level and above (default: info)",
    )
    add("--version", action="version", version=f"galactica-agent {__version__}")
    return command


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings; takes the token out of the environment. Raises StartError (wrong usage)."""
    host_and_port(arguments.scheduler)
    host_and_port(arguments.enrol or arguments.scheduler)
    # Processes that the agent starts must not see the token.
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
        maintenance_seconds=arguments.maintenance,
    )


def host_and_port(address: str) -> tuple[str, int]:
    """The host without the brackets of an IPv6 address. Raises StartError (wrong usage)."""
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_ambiguous = ":" in host and bare == host
    if not bare or is_ambiguous or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise StartError(
            f"invalid address '{address}': use HOST:PORT, or [ADDRESS]:PORT for IPv6", EXIT_USAGE
        )
    return bare, int(port)


def _maintenance_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds <= MAINTENANCE_LIMIT_SECONDS:
        raise argparse.ArgumentTypeError(
            f"invalid value '{text}': use seconds, from 0 to {MAINTENANCE_LIMIT_SECONDS:g}"
        )
    return seconds


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise StartError(f"invalid label '{pair}': use KEY=VALUE", EXIT_USAGE)
        labels[key] = value
    if len(labels) > LABELS_LIMIT:
        raise StartError(f"too many labels: {len(labels)}, the limit is {LABELS_LIMIT}", EXIT_USAGE)
    return labels
