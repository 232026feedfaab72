"""What readers see: rows of the operators' contract, made from one ``View``. Pure, and safe to run in a thread,
since everything in a view is immutable.

A cell or server shows the verdict of this very moment, except that a condemned one shows the verdict that condemned it:
it never comes back, whatever its probe says now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from galactica.scheduler.health import cell_verdict
from galactica.scheduler.model import (
    Cell,
    CellKind,
    Evidence,
    Group,
    GroupState,
    Health,
    Hold,
    Phase,
    SlotKey,
    Storm,
    Verdict,
)
from galactica.scheduler.ports import View
from galactica.scheduler.server_health import pool_cell_verdict
from galactica.scheduler.sight import CellReport, CellState
from galactica.scheduler.units import format_duration
from galactica.v1 import operator_pb2

_ILL = (Health.SICK, Health.DEAD)


def status(view: View, fleet_name: str) -> operator_pb2.GetStatusResponse:
    """The fleet on one page. In proportion to the number of cells."""
    groups = [group_status(view, state) for _, state in sorted(view.fleet.groups.items())]
    held = holds(view)
    return operator_pb2.GetStatusResponse(
        fleet=fleet_name,
        healthy=not held and not view.storms and all(map(_is_whole, view.fleet.groups.values(), groups)),
        groups=groups,
        held=held,
        position=view.fleet.position,
        epoch=view.fleet.epoch,
        storms=map(_storm_row, view.storms),
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
    """``ready`` and ``booting`` leave out what is judged sick or dead and not yet condemned."""
    ill_ready = ill_booting = 0
    for cell in _cells_of(state):
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
    """Every slot READY with the newest revision, as recorded. Takes no longer for a larger group."""
    return state.tally.ready == state.wanted_slots and not state.tally.outdated and not state.tally.booting


def _is_whole(state: GroupState, row: operator_pb2.GroupStatus) -> bool:
    return row.ready == row.wanted and not state.tally.outdated


def holds(view: View, key: SlotKey | None = None) -> list[operator_pb2.Hold]:
    """What is held back, one row per group and rule with the first slot's reason; or that of one slot."""
    rows: dict[tuple[str, str], operator_pb2.Hold] = {}
    if view.trouble:
        rows["", "journal"] = operator_pb2.Hold(rule="journal", reason=view.trouble)
    for hold in view.holds:
        if key is None or hold.key == key:
            _add_hold(rows, hold)
    return [rows[name] for name in sorted(rows)]


def hold_rows(held: Iterable[Hold]) -> list[operator_pb2.Hold]:
    """The same for holds that are given, as those of a plan."""
    rows: dict[tuple[str, str], operator_pb2.Hold] = {}
    for hold in held:
        _add_hold(rows, hold)
    return [rows[name] for name in sorted(rows)]


def _add_hold(rows: dict[tuple[str, str], operator_pb2.Hold], hold: Hold) -> None:
    is_slot = isinstance(hold.key, SlotKey)
    group = hold.key.group if isinstance(hold.key, SlotKey) else ""
    row = rows.get((group, hold.rule))
    if row is None:
        row = rows[group, hold.rule] = operator_pb2.Hold(group=group, rule=hold.rule, reason=hold.reason)
    row.slots += is_slot
    at = hold.next_look_at
    if at is not None and (not row.HasField("next_look_at") or at < row.next_look_at):
        row.next_look_at = at


# --- cells --------------------------------------------------------------------------------------------------------


def cells(view: View, group: str = "", *, with_graves: bool = False) -> Iterator[operator_pb2.Cell]:
    """Rows by group, slot and generation. ``with_graves``: decommissioned ones that are remembered too."""
    found = [
        cell
        for name, state in view.fleet.groups.items()
        if not group or name == group
        for cell in _cells_of(state)
    ]
    if with_graves:
        found += [cell for cell in view.fleet.graves.values() if not group or cell.group == group]
    found.sort(key=lambda cell: (cell.group, cell.slot, cell.generation))
    return (cell_row(view, cell) for cell in found)


def find_cell(view: View, cell_id: str) -> Cell | None:
    """The cell, alive or in its grave, as far back as the fleet remembers."""
    living = view.fleet.cell(cell_id)
    if living is not None:
        return living
    return next((cell for cell in view.fleet.graves.values() if cell.id == cell_id), None)


def cell_row(view: View, cell: Cell) -> operator_pb2.Cell:
    report = view.sight.report_of(cell.server, cell.id)
    health, reason = verdict_words(cell, None if cell.is_condemned else verdict_of(view, cell))
    return operator_pb2.Cell(
        id=cell.id,
        group=cell.group,
        slot=cell.slot,
        generation=cell.generation,
        kind=cell.kind.value,
        phase=cell.phase.value,
        verdict=health,
        reason=reason,
        server=cell.server,
        digest=cell.digest,
        revision=cell.revision,
        ordered_at=cell.ordered_at,
        ready_at=cell.ready_at,
        condemned_at=cell.condemned_at,
        decommissioned_at=cell.decommissioned_at,
        replaces=cell.replaces,
        replaced_by=cell.replaced_by,
        endpoints=_endpoints(cell, report),
        runtime_id=cell.runtime_id or (report.runtime_id if report else ""),
        progress=_progress(cell, report),
    )


def _endpoints(cell: Cell, report: CellReport | None) -> Mapping[str, str]:
    """None of a cell in which a shell was opened: whoever looks here for where to send traffic sends it none."""
    if cell.dies_at is not None:
        return {}
    return cell.endpoints or (report.endpoints if report else {})


def verdict_words(cell: Cell, verdict: Verdict | None) -> tuple[str, str]:
    """Health and reason to show. A condemned cell keeps what condemned it, whatever is seen now."""
    if cell.is_condemned or verdict is None:
        return str(cell.condemned_health or ""), cell.condemned_by
    return str(verdict.health), verdict.reason


def verdict_of(view: View, cell: Cell) -> Verdict:
    """What the evidence says of a living cell now."""
    state = view.fleet.groups[cell.group]
    if cell.kind is CellKind.SERVER:
        return pool_cell_verdict(view.fleet, state, cell, view.sight, view.now, view.policy)
    spec = state.spec_for(cell)
    server = view.fleet.servers.get(cell.server)
    verdict = cell_verdict(cell, spec, server, view.sight, view.now, view.policy)
    return (_touched(view, cell) or verdict) if verdict.health is Health.HEALTHY else verdict


def _touched(view: View, cell: Cell) -> Verdict | None:
    """It runs, and is not what was ordered any more. It goes for that, or stays and is told (``drift: report``)."""
    if cell.dies_at is not None:
        fact = Evidence("scheduler", "a shell was opened in it", cell.dies_at - view.policy.shell_seconds)
        left = format_duration(max(0.0, cell.dies_at - view.now))
        return Verdict(Health.SUSPECT, "touched", f"a shell was opened in it; it goes in {left}", (fact,))
    report = view.sight.report_of(cell.server, cell.id)
    if report is None or not report.touched:
        return None
    seen = view.sight.servers[cell.server]
    facts = tuple(Evidence(f"agent {cell.server}", one, seen.heard_at) for one in report.touched)
    return Verdict(Health.SUSPECT, "touched", f"touched: {'; '.join(report.touched)}", facts)


def _is_plainly_well(view: View, cell: Cell) -> bool:
    """What most cells are, told without asking every rule."""
    if cell.phase is not Phase.READY:
        return False
    server = view.fleet.servers.get(cell.server)
    if server is None or server.is_lost:
        return False  # nor is a pool's cell, which is on no server
    report = view.sight.report_of(cell.server, cell.id)
    if report is None or report.state is not CellState.RUNNING:
        return False
    return report.probe is None or report.probe.consecutive_failures == 0


def _cells_of(state: GroupState) -> Iterator[Cell]:
    for slot in state.slots.values():
        yield from slot.cells


def _progress(cell: Cell, report: CellReport | None) -> str:
    if report is None or cell.was_ready or cell.is_condemned:
        return ""
    return report.progress
