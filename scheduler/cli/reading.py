"""Commands that only read. Every role may use them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from galactica.scheduler.cli import group_texts, people, server_texts
from galactica.scheduler.cli.arguments import KINDS, Output, Scheduler, group_name, named_group
from galactica.scheduler.cli.client import LONG_ANSWER_SECONDS, Client, UnknownCall, connect
from galactica.scheduler.cli.output import (
    Format,
    Styled,
    line,
    print_json,
    print_json_line,
    table,
    write,
    write_bytes,
)
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2

EVENTS_SHOWN = 20
LINES_SHOWN = 100
_CELL_ID = re.compile(r"[^/]+/\d+\.\d+")


def status(scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show whether the fleet is healthy: the groups, their cells, holds and storms. Exit code 1: it is not."""
    with connect(scheduler) as client:
        answer = client.ask(client.stub.GetStatus, operator_pb2.GetStatusRequest())
    with contextlib.suppress(typer.Exit):  # nobody reads on; the exit code still says it
        _show_status(answer, client.now, output)
    if not answer.healthy:
        raise typer.Exit(ExitCode.FAILED)


def _show_status(answer: operator_pb2.GetStatusResponse, now: float, output: Format) -> None:
    if output is Format.JSON:
        print_json(shapes.status(answer))
        return
    line(*people.headline(answer))
    if answer.groups:
        write("\n")
        table(people.GROUP_COLUMNS, (people.group_row(group) for group in answer.groups))
    elif not any(hold.rule == "regrowing" for hold in answer.held):
        line("Create a service or a pool: galactica apply FILE")
    for storm in answer.storms:
        write("\n")
        for parts in server_texts.storm_lines(storm, now):
            line(*parts)
    if held := people.without_storms(answer):
        write("\n")
        line(Styled("Held", "bold"))
        for hold in held:
            line(f"  {people.hold_text(hold, now)}")
    if answer.notes:
        write("\n")
        line(Styled("Notes", "bold"))
        for note in answer.notes:
            line(f"  {note}")
    if answer.HasField("genome"):
        write("\n")
        line(Styled(people.genome_text(answer.genome), people.DIM))


def cells(
    group: Annotated[str, typer.Argument(metavar="[GROUP]", help="Show only the cells of this group.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Show decommissioned cells too.")] = False,
    scheduler: Scheduler = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the cells, their phase and verdict, and their servers."""
    name = group_name(group)
    with connect(scheduler) as client:
        request = operator_pb2.ListCellsRequest(all=everything, group=name)
        answer = client.ask(client.stub.ListCells, request, LONG_ANSWER_SECONDS)
        deaths = _deaths(client, name) if name and not everything and output is not Format.JSON else []
    if output is Format.JSON:
        print_json([shapes.cell(cell) for cell in answer.cells])
    elif answer.cells:
        table(people.CELL_COLUMNS, (people.cell_row(cell, client.now) for cell in answer.cells))
    else:
        line(f"No cells{f' of {name}' if name else ''}. See all groups: galactica status")
    if deaths:
        line("")
        line(Styled("Newest deaths", "bold"))
        table(group_texts.DEATH_COLUMNS, map(group_texts.death_row, deaths))


def _deaths(client: Client, name: str) -> Sequence[operator_pb2.GetCertificateResponse]:
    """The newest deaths of a group that is not healthy."""
    with contextlib.suppress(UnknownCall):
        answer = client.ask(client.stub.GetGroup, operator_pb2.GetGroupRequest(group=name))
        return () if answer.healthy else answer.deaths
    return ()


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new events until Ctrl-C.")
    ] = False,
    first: Annotated[
        int | None,
        typer.Option("--from", min=1, metavar="POSITION", help="Show all events, starting at this position."),
    ] = None,
    number: Annotated[
        int | None,
        typer.Option(
            "--number", "-n", min=0, max=1_000_000, help=f"Show the last N events. Default: {EVENTS_SHOWN}."
        ),
    ] = None,
    scheduler: Scheduler = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the events of the journal, one per line. -o json shows all fields, one object per line."""
    if first is not None and number is not None:
        raise typer.BadParameter("use either --from or --number, not both")
    tail = 0 if first else EVENTS_SHOWN if number is None else number
    with connect(scheduler) as client:
        request = operator_pb2.WatchEventsRequest(from_position=first or 0, tail=tail, follow=follow)
        for answer in client.stream(client.stub.WatchEvents, request):
            for event in answer.events:
                if output is Format.JSON:
                    print_json_line(shapes.event(event))
                else:
                    line(*people.event_parts(event))


def why(
    what: Annotated[
        str,
        typer.Argument(
            metavar="CELL|SERVER|GROUP",
            help="Id of a cell, for example web/2.7, or of a server, or a group: service/NAME, pool/NAME or NAME.",
        ),
    ],
    scheduler: Scheduler = None,
    output: Output = Format.TABLE,
) -> None:
    """Show the death certificate of a cell or server: evidence, verdict, rule and budget. Of a group: how it stands,
    what is held and why, and its newest deaths."""
    with connect(scheduler) as client:
        answer = _group_named(client, what) or _certificate_or_group(client, what)
    if isinstance(answer, operator_pb2.GetGroupResponse):
        if output is Format.JSON:
            print_json(shapes.group(answer))
            return
        lines = group_texts.lines(answer, client.now)
    else:
        if output is Format.JSON:
            print_json(shapes.certificate(answer))
            return
        lines = people.certificate_lines(answer, client.now)
    for parts in lines:
        line(*parts)


def _group_named(client: Client, what: str) -> operator_pb2.GetGroupResponse | None:
    """The group in ``service/NAME`` or ``pool/NAME``. None: it is written otherwise, as ``web``, ``web/2.7`` or the
    cell ``pool/2.7``."""
    kind, slash, _ = what.partition("/")
    if not slash or kind not in KINDS or _CELL_ID.fullmatch(what):
        return None
    number, name = named_group(what)
    return client.ask(client.stub.GetGroup, operator_pb2.GetGroupRequest(group=name, kind=number))


def _certificate_or_group(
    client: Client, what: str
) -> operator_pb2.GetCertificateResponse | operator_pb2.GetGroupResponse:
    """A server comes before a group of the same name, which can be written ``service/NAME``."""
    try:
        return client.ask(client.stub.GetCertificate, operator_pb2.GetCertificateRequest(cell_id=what))
    except CommandFailed as failure:
        if failure.code is not ExitCode.USAGE or "/" in what:
            raise
        with contextlib.suppress(CommandFailed):
            return client.ask(client.stub.GetGroup, operator_pb2.GetGroupRequest(group=what))
        raise


def logs(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="Id of the cell, for example web/2.7.")],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new output until Ctrl-C.")
    ] = False,
    number: Annotated[
        int,
        typer.Option(
            "--number", "-n", min=0, max=1_000_000, help=f"Show the last N lines. Default: {LINES_SHOWN}."
        ),
    ] = LINES_SHOWN,
    scheduler: Scheduler = None,
) -> None:
    """Show a cell's standard output and standard error, unchanged."""
    with connect(scheduler) as client:
        request = operator_pb2.ReadLogsRequest(cell_id=cell, tail=number, follow=follow)
        for answer in client.stream(client.stub.ReadLogs, request):
            write_bytes(answer.data)


def top(scheduler: Scheduler = None) -> None:
    """Show the fleet live, until q or Ctrl-C. In a pipe: print it once."""
    with connect(scheduler) as client:
        from galactica.scheduler.cli.top import show

        show(client)
