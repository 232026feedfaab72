"""The fleet on one page: groups, holds and storms."""

from __future__ import annotations

from collections.abc import Iterable

from galactica.scheduler.core.model.fleet import Cell, GroupState, Phase
from galactica.scheduler.core.model.keys import Hold, OrphanKey, SlotKey, Storm
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.model.spec import Group
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.reconcile.servers import regrowth_hold
from galactica.scheduler.core.sight.observations import CellState
from galactica.scheduler.views.cells import cells_of_group, verdict_of
from galactica.scheduler.views.genome import Spread, genome_notes, genome_row
from galactica.scheduler.views.notes import clock_notes, deleting_notes, lease_of, notes
from galactica.v1 import operator_pb2

_ILL = (Health.SICK, Health.DEAD)


def status(
    view: View, fleet_name: str, genome: Spread | None = None, wall: float | None = None
) -> operator_pb2.GetStatusResponse:
    """The fleet on one page. The time grows with the number of cells. ``wall``: the time by the wall clock."""
    groups = [group_status(view, state) for _, state in sorted(view.fleet.groups.items())]
    held = holds(view)
    return operator_pb2.GetStatusResponse(
        fleet=fleet_name,
        healthy=not held and not view.storms and all(map(is_whole, view.fleet.groups.values(), groups)),
        groups=groups,
        held=held,
        position=view.fleet.position,
        epoch=view.fleet.epoch,
        storms=map(_storm_row, view.storms),
        notes=[
            *clock_notes(view, wall),
            *notes(view),
            *deleting_notes(view),
            *genome_notes(genome or Spread()),
        ],
        genome=genome_row(genome or Spread()),
    )


def _storm_row(storm: Storm) -> operator_pb2.Storm:
    return operator_pb2.Storm(
        id=storm.id,
        pool=storm.pool,
        silent=storm.silent,
        of=storm.of,
        since=storm.since,
        expires_at=storm.expires_at,
        reason=storm.reason,
    )


def group_status(view: View, state: GroupState) -> operator_pb2.GroupStatus:
    """``ready`` and ``booting`` do not count cells that are sick or dead but not yet condemned."""
    ill_ready = ill_booting = 0
    for cell in cells_of_group(state):
        if cell.is_condemned or _is_plainly_well(view, cell):
            continue
        if verdict_of(view, cell).health in _ILL:
            if cell.phase is Phase.READY:
                ill_ready += 1
            else:
                ill_booting += 1
    return operator_pb2.GroupStatus(
        kind=state.group.kind.value,
        name=state.group.name,
        wanted=state.wanted_slots,
        ready=state.tally.ready - ill_ready,
        booting=state.tally.booting - ill_booting,
        sick=state.tally.condemned + ill_ready + ill_booting,
        revision=state.revision,
        provider=_provider_of(state.group),
    )


def _provider_of(group: Group) -> str:
    return group.spec.server.provider if group.spec.server else ""


def is_ready(state: GroupState) -> bool:
    """Whether every slot is READY with the newest revision, as recorded, and no predecessor waits for proof of it.
    Takes the same time for every group size."""
    return state.tally.ready == state.wanted_slots and not (
        state.tally.outdated or state.tally.booting or state.tally.replacing
    )


def is_whole(state: GroupState, row: operator_pb2.GroupStatus) -> bool:
    """Whether it has all wanted cells, well and of the newest revision."""
    return row.ready == row.wanted and not (state.tally.outdated or state.tally.replacing)


def holds(view: View, key: SlotKey | None = None) -> list[operator_pb2.Hold]:
    """The holds, one row per group and rule, with the reason of the first slot. ``key``: only those of one slot."""
    rows: dict[tuple[str, str], operator_pb2.Hold] = {}
    if view.trouble:
        rows["", HoldRule.JOURNAL] = operator_pb2.Hold(rule=HoldRule.JOURNAL, reason=view.trouble)
    missing = _nobody_attached(view)
    if missing and key is None:
        rows["", HoldRule.NOBODY_ATTACHED] = operator_pb2.Hold(rule=HoldRule.NOBODY_ATTACHED, reason=missing)
    regrowing = regrowth_hold(view.fleet, view.sight, view.now, view.policy)
    if regrowing is not None and key is None:
        rows["", regrowing.rule] = operator_pb2.Hold(rule=regrowing.rule, reason=regrowing.reason)
    for hold in view.holds:
        if key is None or hold.key == key:
            _add_hold(rows, hold)
    for storm in view.storms:  # what is held says the same as the storm, which may have grown since
        if row := rows.get((storm.pool, HoldRule.STORM)):
            row.reason = storm.reason
    return [rows[name] for name in sorted(rows)]


def _nobody_attached(view: View) -> str:
    """Why nothing can be carried out: there are servers, and the agent of none is here."""
    servers = [
        server
        for server in view.fleet.servers.values()
        if server.phase is Phase.READY and lease_of(view, server.id) is None
    ]
    seen = view.sight.servers
    if not servers or any(server.id in seen and seen[server.id].is_open for server in servers):
        return ""
    return f"no agent is attached, of {len(servers)} servers; look at the agents' logs: they say why"


def hold_rows(held: Iterable[Hold]) -> list[operator_pb2.Hold]:
    """The same for given holds, such as those of a plan."""
    rows: dict[tuple[str, str], operator_pb2.Hold] = {}
    for hold in held:
        _add_hold(rows, hold)
    return [rows[name] for name in sorted(rows)]


def _add_hold(rows: dict[tuple[str, str], operator_pb2.Hold], hold: Hold) -> None:
    is_cell = isinstance(hold.key, SlotKey | OrphanKey)
    group = hold.key.group if isinstance(hold.key, SlotKey) else ""
    row = rows.get((group, hold.rule))
    if row is None:
        row = rows[group, hold.rule] = operator_pb2.Hold(group=group, rule=hold.rule, reason=hold.reason)
    row.slots += is_cell
    at = hold.next_look_at
    if at is not None and (not row.HasField("next_look_at") or at < row.next_look_at):
        row.next_look_at = at


def _is_plainly_well(view: View, cell: Cell) -> bool:
    """A quick check for the common case, without evaluating every rule."""
    if cell.phase is not Phase.READY:
        return False
    server = view.fleet.servers.get(cell.server)
    if server is None or server.is_lost:
        return False  # also for a pool's cell, which runs on no server
    report = view.sight.report_of(cell.server, cell.id)
    if report is None or report.state is not CellState.RUNNING:
        return False
    return report.probe is None or report.probe.consecutive_failures == 0
