"""The commands ``up`` and ``scheduler``: they read the options and then run in the foreground."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from galactica.scheduler.cli.arguments import read
from galactica.scheduler.settings.broker import BusOptions, bus_options
from galactica.scheduler.settings.context import context_path
from galactica.scheduler.settings.options import (
    DEFAULT_PORT,
    RuntimeChoice,
    SchedulerOptions,
    UpOptions,
    default_data,
    next_port,
    parse_address,
    parse_labels,
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="Data directory of the fleet. Default: /var/lib/galactica for root, otherwise ~/.local/share/galactica.",
    ),
]

Bus = Annotated[
    str,
    typer.Option(
        "--bus",
        metavar="URL",
        help="Publish all events to this MQTT broker: mqtt://[USER@]HOST[:PORT], mqtts:// for TLS. "
        "The password comes from GALACTICA_BUS_PASSWORD.",
    ),
]
BusCa = Annotated[
    Path | None,
    typer.Option(
        "--bus-ca",
        metavar="FILE",
        help="CA of the broker's certificate. Default: the CAs that this machine trusts.",
    ),
]
BusPasswordFile = Annotated[
    Path | None,
    typer.Option("--bus-password-file", metavar="FILE", help="File with the broker's password."),
]


def up(
    data: Data = None,
    runtime: Annotated[
        RuntimeChoice | None,
        typer.Option(
            "--runtime",
            help="Runtime for cells on this machine. Default: docker if an engine answers, otherwise process.",
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Address for agents and operators.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="K=V", help="Label of this server. May be repeated."),
    ] = None,
    stop_cells: Annotated[
        bool, typer.Option("--stop-cells", help="On Ctrl-C end the cells too. Otherwise they live on.")
    ] = False,
    bus: Bus = "",
    bus_ca: BusCa = None,
    bus_password_file: BusPasswordFile = None,
) -> None:
    """Run a fleet on this machine: the scheduler and one agent, in the foreground, until Ctrl-C."""
    options = UpOptions(
        data=(data or default_data()).absolute(),
        context=context_path(),
        listen=read("--listen", parse_address, listen),
        runtime=runtime,
        labels=read("--label", lambda _: parse_labels(label or []), ""),
        stop_cells=stop_cells,
        bus=_bus(bus, bus_ca, bus_password_file),
    )
    from galactica.scheduler.serve.run import run_up

    run_up(options)


def scheduler(
    data: Data = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Address for agents and operators.")
    ] = f"0.0.0.0:{DEFAULT_PORT}",
    enrol_listen: Annotated[
        str | None,
        typer.Option(
            "--enrol-listen",
            metavar="HOST:PORT",
            help="Address where new servers enrol. Default: the next port after --listen.",
        ),
    ] = None,
    fleet: Annotated[
        str,
        typer.Option(
            "--fleet", metavar="NAME", help="Name of the fleet. It cannot change after the first start."
        ),
    ] = "galactica",
    providers: Annotated[
        Path | None,
        typer.Option(
            "--providers",
            metavar="FILE",
            help="Providers that make the servers of pools. Default: providers.yaml in the data directory.",
        ),
    ] = None,
    regrow: Annotated[
        bool,
        typer.Option(
            "--regrow",
            help="The journal is lost, only ca/ is left: take from its agents what the fleet wants.",
        ),
    ] = False,
    bus: Bus = "",
    bus_ca: BusCa = None,
    bus_password_file: BusPasswordFile = None,
) -> None:
    """Run only the scheduler, in the foreground. Servers join it with galactica-agent."""
    address = read("--listen", parse_address, listen)
    options = SchedulerOptions(
        data=(data or default_data()).absolute(),
        context=context_path(),
        fleet=fleet,
        listen=address,
        enrol_listen=(
            read("--enrol-listen", parse_address, enrol_listen)
            if enrol_listen
            else read("--listen", lambda _: next_port(address), listen)
        ),
        bus=_bus(bus, bus_ca, bus_password_file),
        providers=providers.absolute() if providers else None,
        regrow=regrow,
    )
    from galactica.scheduler.serve.run import run_scheduler

    run_scheduler(options)


def _bus(url: str, ca_file: Path | None, password_file: Path | None) -> BusOptions | None:
    """The bus options. File paths are made absolute, because an agent may get them too."""
    if not url:
        return None
    ca, password = (file.absolute() if file else None for file in (ca_file, password_file))
    return read("--bus", lambda text: bus_options(text, ca, password, os.environ), url)
