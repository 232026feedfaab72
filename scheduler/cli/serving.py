"""``up`` and ``scheduler``: the servers themselves, in the foreground. They only read options here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scheduler.cli.arguments import read
from scheduler.context import context_path
from scheduler.options import (
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
        help="Where the fleet is kept (/var/lib/galactica for root, else ~/.local/share/galactica).",
    ),
]


def up(
    data: Data = None,
    runtime: Annotated[
        RuntimeChoice | None,
        typer.Option(
            "--runtime", help="What runs cells here (docker where an engine answers, else process)."
        ),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where agents and operators find it.")
    ] = f"127.0.0.1:{DEFAULT_PORT}",
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="K=V", help="A label of this server; repeatable.")
    ] = None,
    stop_cells: Annotated[
        bool, typer.Option("--stop-cells", help="End the cells too on Ctrl-C; else they live on.")
    ] = False,
) -> None:
    """A fleet on this machine: the scheduler and one agent, in the foreground, until Ctrl-C."""
    options = UpOptions(
        data=(data or default_data()).absolute(),
        context=context_path(),
        listen=read("--listen", parse_address, listen),
        runtime=runtime,
        labels=read("--label", lambda _: parse_labels(label or []), ""),
        stop_cells=stop_cells,
    )
    from scheduler.serve import run_up

    run_up(options)


def scheduler(
    data: Data = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where agents and operators find it.")
    ] = f"0.0.0.0:{DEFAULT_PORT}",
    enrol_listen: Annotated[
        str | None,
        typer.Option("--enrol-listen", metavar="HOST:PORT", help="Where new servers enrol (the next port)."),
    ] = None,
    fleet: Annotated[
        str, typer.Option("--fleet", metavar="NAME", help="The fleet's name, fixed at its first start.")
    ] = "galactica",
) -> None:
    """The scheduler alone, in the foreground. Servers join it with galactica-agent."""
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
    )
    from scheduler.serve import run_scheduler

    run_scheduler(options)
