"""Commands that change the fleet: apply, plan, delete, condemn, adopt and drain."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from galactica.scheduler.cli import people
from galactica.scheduler.cli.arguments import Named, Output, Scheduler, named_group
from galactica.scheduler.cli.client import (
    LONG_ANSWER_SECONDS,
    connect,
)
from galactica.scheduler.cli.output import Format, Styled, line, print_json, safe, tell
from galactica.scheduler.settings.errors import CommandFailed, ExitCode
from galactica.scheduler.views import shapes
from galactica.v1 import operator_pb2

if TYPE_CHECKING:
    from galactica.scheduler.core.model.spec import Group


Files = Annotated[list[str], typer.Argument(metavar="FILE...", help="Manifest files; - is standard input.")]


def apply(files: Files, scheduler: Scheduler = None) -> None:
    """Apply manifests: order cells for new and changed services and pools. Unchanged ones stay as they are."""
    groups = _load(files)
    with connect(scheduler) as client:
        from galactica.scheduler.wire.operator import group_to_proto

        request = operator_pb2.ApplyGroupsRequest(groups=[group_to_proto(group) for group in groups])
        answer = client.ask(client.stub.ApplyGroups, request, LONG_ANSWER_SECONDS)
    wanted = {group.name: group for group in groups}
    moved = [change.group for change in answer.changes if change.change != "unchanged"]
    for change in answer.changes:
        group = wanted.get(change.group)
        tell(*people.change_text(change, people.counted(group.replicas, _noun_of(group)) if group else ""))
    for hold in answer.held:
        tell(Styled("held ", people.WARN), people.hold_text(hold, client.now))
    if not moved:
        tell("No changes: already up to date. Current state: galactica status")
    for name in moved[:10]:
        tell(f"Wait until it is ready: galactica wait {wanted[name].kind}/{name} --ready")


def _noun_of(group: Group) -> str:
    return "server" if group.kind == "pool" else "cell"


def plan(files: Files, scheduler: Scheduler = None, output: Output = Format.TABLE) -> None:
    """Show what applying the manifests would do: births and deaths of cells. Changes nothing."""
    groups = _load(files)
    with connect(scheduler) as client:
        from galactica.scheduler.wire.operator import group_to_proto

        request = operator_pb2.PlanGroupsRequest(groups=[group_to_proto(group) for group in groups])
        answer = client.ask(client.stub.PlanGroups, request, LONG_ANSWER_SECONDS)
    if output is Format.JSON:
        print_json(shapes.plan(answer))
        return
    for change in answer.changes:
        line(*people.change_text(change, "", planned=True))
    for parts in people.plan_lines(answer, client.now):
        line(*parts)
    if (
        all(change.change == "unchanged" for change in answer.changes)
        and not answer.births
        and not answer.deaths
    ):
        line("Applying this changes nothing.")
        return
    births, deaths = len(answer.births) + answer.more_births, len(answer.deaths) + answer.more_deaths
    sums = f"{people.counted(births, 'birth')}, {people.counted(deaths, 'death')}"
    line(f"{sums}. This is a plan; nothing was changed. To apply it: galactica apply {' '.join(files)}")


def delete(group: Named, scheduler: Scheduler = None) -> None:
    """Delete a service with all its cells, or a pool with all its servers."""
    kind, name = named_group(group)
    with connect(scheduler) as client:
        request = operator_pb2.DeleteGroupRequest(group=name, kind=kind)
        answer = client.ask(client.stub.DeleteGroup, request)
    noun = _noun(kind)
    tell(f"{name}: deleted, {people.counted(answer.cells, noun)} to go. Watch: galactica cells {name}")


def _noun(kind: operator_pb2.GroupKind.ValueType) -> str:
    return "server" if kind == operator_pb2.GROUP_KIND_POOL else "cell"


def condemn(
    cell: Annotated[
        str,
        typer.Argument(metavar="CELL", help="Id of a cell, for example web/2.7, or of a server of a pool."),
    ] = "",
    reason: Annotated[str, typer.Option("--reason", help="The reason, for the death certificate.")] = "",
    unknown: Annotated[
        bool,
        typer.Option(
            "--unknown", help="Remove what agents run and the journal never ordered: CELL, or all of it."
        ),
    ] = False,
    on: Annotated[
        str, typer.Option("--on", metavar="SERVER", help="With --unknown: only what this server shows.")
    ] = "",
    scheduler: Scheduler = None,
) -> None:
    """Condemn a cell or a server of a pool. Its replacement comes first."""
    if unknown:
        _condemn_unknown(cell, on, scheduler)
        return
    if on:
        raise CommandFailed(
            "--on goes with --unknown only",
            ExitCode.USAGE,
            "A cell that the journal ordered is on one server: leave --on out",
        )
    if not cell:
        raise CommandFailed(
            "no cell given",
            ExitCode.USAGE,
            "Name one, for example: galactica condemn web/2.7. All: galactica cells",
        )
    with connect(scheduler) as client:
        request = operator_pb2.CondemnCellRequest(cell_id=cell, reason=reason)
        client.ask(client.stub.CondemnCell, request)
    tell(f"{cell}: condemned; it goes when its replacement is proven. Details: galactica why {cell}")


def _condemn_unknown(cell: str, server: str, scheduler: str | None) -> None:
    with connect(scheduler) as client:
        request = operator_pb2.CondemnUnknownRequest(cell_ids=[cell] if cell else [], server_id=server)
        answer = client.ask(client.stub.CondemnUnknown, request)
    tell(f"{people.counted(answer.cells, 'unknown cell')} condemned. Watch: galactica status")


def adopt(
    cells: Annotated[
        list[str] | None, typer.Argument(metavar="[CELL]...", help="Ids, as galactica status shows them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that can be adopted.")] = False,
    on: Annotated[str, typer.Option("--on", metavar="SERVER", help="Only what this server shows.")] = "",
    scheduler: Scheduler = None,
) -> None:
    """Take in cells that agents run and the journal never ordered, as they are. Their spec must be known: apply the
    manifests that they were made from first."""
    if bool(cells) is every:
        raise CommandFailed(
            "name the cells to adopt, or all of them with --all", ExitCode.USAGE, "See them: galactica status"
        )
    with connect(scheduler) as client:
        request = operator_pb2.AdoptCellsRequest(cell_ids=cells or [], server_id=on)
        answer = client.ask(client.stub.AdoptCells, request)
    tell(f"{people.counted(answer.cells, 'cell')} adopted.")
    for note in answer.notes:
        tell(f"not {note}")


def drain(
    server: Annotated[
        str, typer.Argument(metavar="SERVER", help="Id of the server, as shown by galactica servers.")
    ],
    scheduler: Scheduler = None,
) -> None:
    """Drain a server: its cells are replaced on other servers first, then it goes."""
    with connect(scheduler) as client:
        answer = client.ask(client.stub.DrainServer, operator_pb2.DrainServerRequest(server_id=server))
    moving = f"{people.counted(answer.cells, 'cell')} to replace on other servers first"
    tell(f"{server}: draining, {moving}. Watch: galactica servers")


def _load(files: list[str]) -> tuple[Group, ...]:
    from galactica.scheduler.manifest.loading import ManifestErrors, load

    try:
        return load(files)
    except ManifestErrors as error:
        count = len(error.mistakes)
        sys.stderr.write(f"{safe(str(error))}\n")
        raise CommandFailed(
            f"{count} {'mistake' if count == 1 else 'mistakes'}; nothing was sent to the scheduler",
            ExitCode.USAGE,
        ) from error
