"""What should not be there: cells that an agent shows and nobody ordered there, servers that a provider has and
should not.
"""

from __future__ import annotations

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, DecommissionServer, Verb
from galactica.scheduler.core.model.fleet import Fleet, Phase, parse_cell_id
from galactica.scheduler.core.model.keys import LeakKey, OrphanKey, ServerKey, own_slot, slot_key_of
from galactica.scheduler.core.model.rules import HoldRule, Rule
from galactica.scheduler.core.reconcile.draft import Draft, resend, resend_to_provider
from galactica.scheduler.core.sight.observations import CellState, ProviderState
from galactica.scheduler.core.unknown import (
    SHOWN_BY_ONE_SERVER,
    UNKNOWN_KEPT,
    is_place,
    is_told_too_many,
    is_unknown,
    is_unwanted,
    shows_too_many,
    slot_of,
    was_skipped,
)
from galactica.scheduler.core.verdicts.machines import is_other_machine


def look_orphan(draft: Draft, key: OrphanKey) -> None:
    """An agent shows a cell that is not wanted there. What the journal knows to be decommissioned is removed: the agent
    is told until it says that the cell is gone. What the journal never ordered is left alone and shown."""
    report = draft.sight.report_of(key.server, key.cell)
    cell = draft.fleet.cell(key.cell)
    if cell is not None and cell.server == key.server:
        return
    if report is None or report.state is CellState.GONE:
        _is_gone(draft, key)
        return
    if is_unwanted(draft.fleet, key.server, key.cell):
        resend(draft, key, Decommission(key.server, key.cell, Rule.OPERATOR))
        return
    is_told = draft.was_told(key.server, key.cell, Verb.DECOMMISSION) is not None
    if not is_told and (cell is not None or _is_strange(draft.fleet, key)):
        _leave_alone(draft, key)
        return
    if not is_told:
        draft.emit(e.OrphanRemoved(key.cell, key.server, "it is decommissioned"))
    resend(draft, key, Decommission(key.server, key.cell, "orphan"))


def _is_strange(fleet: Fleet, key: OrphanKey) -> bool:
    if is_unknown(fleet, key.server, key.cell) or not was_ordered(fleet, key.cell):
        return True
    return shows_too_many(fleet, key.server)


def _is_gone(draft: Draft, key: OrphanKey) -> None:
    """The agent says so, or its whole inventory does not have it."""
    draft.forget(key.server, key.cell)
    seen = draft.sight.servers.get(key.server)
    is_told = seen is not None and seen.is_open and not seen.is_doubtful
    if is_other_machine(draft.fleet.servers.get(key.server), draft.sight):
        return  # it may never have had it
    if is_told and is_unknown(draft.fleet, key.server, key.cell):
        reason = "its agent says that it is gone"
        draft.emit(e.OrphanRemoved(key.cell, key.server, reason, is_gone=True))
        draft.look_at_slot_of(key.cell)
        _look_at_place(draft, key.server)


def _look_at_place(draft: Draft, server_id: str) -> None:
    """A condemned server may have waited for what was on it."""
    server = draft.fleet.servers.get(server_id)
    if server is not None:
        draft.look(ServerKey(server.id), draft.now)
        for own in own_slot(server, draft.cause):
            draft.look(own, draft.now)


def _leave_alone(draft: Draft, key: OrphanKey) -> None:
    if not is_place(draft.fleet, key.server):
        return  # it goes, with all that is on it
    if not is_unknown(draft.fleet, key.server, key.cell):
        if shows_too_many(draft.fleet, key.server):
            _tell_too_many(draft, key)
            return
        if len(draft.fleet.unknown) < UNKNOWN_KEPT:
            draft.emit(e.UnknownCellFound(key.cell, key.server))
    if _is_adopted(draft, key):
        return
    reason = (
        f"server {key.server} runs {key.cell}, which this journal never ordered there, so it is left alone"
    )
    way_out = "take it in with galactica adopt, or remove it with galactica condemn --unknown"
    draft.hold(key, HoldRule.UNKNOWN_CELL, f"{reason}; {way_out}")


def _tell_too_many(draft: Draft, key: OrphanKey) -> None:
    if not is_told_too_many(draft.fleet, key.server):
        draft.emit(e.UnknownCellsTooMany(key.server, SHOWN_BY_ONE_SERVER))
    reason = (
        f"server {key.server} has shown more than {SHOWN_BY_ONE_SERVER} cells that this journal never ordered; the "
        "others are left alone and hold no slot"
    )
    way_out = "adopt its cells or condemn them as unknown; if its agent makes them up, replace the server"
    draft.hold(key, HoldRule.UNKNOWN_CELL, f"{reason}; {way_out}")


def _is_adopted(draft: Draft, key: OrphanKey) -> bool:
    """A scheduler that is grown anew takes in what runs under an id that its genome covers. Of two cells of one slot it
    takes the younger one that runs."""
    regrowth = draft.fleet.regrowth
    if regrowth is None or not regrowth.is_planted or not is_unknown(draft.fleet, key.server, key.cell):
        return False
    if is_unwanted(draft.fleet, key.server, key.cell):
        return False
    mine = _worth(draft, key.server, key.cell)
    known = draft.fleet.unknown.get(slot_of(key.cell))
    if known and any(_worth(draft, one.server, one.cell) > mine for one in known):
        return False
    if adopt_cell(draft, key.cell, key.server):
        return False
    draft.dirty(slot_key_of(key.cell, draft.cause))
    return True


def _worth(draft: Draft, server: str, cell: str) -> tuple[bool, int, str]:
    """The more, the rather it is the cell of its slot."""
    report = draft.sight.report_of(server, cell)
    parsed = parse_cell_id(cell)
    runs = report is not None and report.state in (CellState.RUNNING, CellState.STARTING)
    return (runs, parsed.generation if parsed else 0, cell)


def shows(draft: Draft, cell: str, server: str) -> bool:
    """Whether the server's agent says at the moment that it has the cell."""
    report = draft.sight.report_of(server, cell)
    return report is not None and report.state is not CellState.GONE


def adopt_cell(draft: Draft, cell: str, server: str) -> str:
    """Take in a cell that this journal never ordered, as it is. Answers why not; empty if it is done."""
    report = draft.sight.report_of(server, cell)
    if report is None or not shows(draft, cell, server):
        return f"server {server} does not report it at the moment"
    parsed = parse_cell_id(cell)
    state = draft.fleet.groups.get(parsed.group) if parsed else None
    if parsed is None or state is None or state.deleted:
        return "its group does not exist here; apply its manifest first"
    if parsed.slot >= state.wanted_slots:
        return f"{parsed.group} wants {state.wanted_slots} cells, and this is one more"
    spec = state.spec_of(report.digest)
    if spec is None:
        return f"{parsed.group} never had its spec {report.digest[:12]}; first apply the manifest that it was made from"
    place = draft.fleet.servers.get(server)
    if place is None or place.phase not in (Phase.READY, Phase.CONDEMNED):
        return f"its server {server} was drained; remove it with galactica condemn --unknown"
    slot = state.slots.get(parsed.slot)
    known = (*(slot.cells if slot else ()), *draft.fleet.graves.values())
    namesake = next((one for one in known if one.id == cell), None)
    if namesake is not None:
        way_out = f"remove it with galactica condemn --unknown {cell} --on {server}"
        return f"its id is that of another cell, which server {namesake.server} has or had; {way_out}"
    wanted = slot.wanted_cell if slot else None
    if wanted is not None:
        return f"its slot has {wanted.id} by now; condemn one of them"
    revision = next(one.number for one in reversed(state.revisions) if one.digest == report.digest)
    draft.emit(e.CellAdopted(cell, report.digest, revision, server, spec.resources))
    return ""


def was_ordered(fleet: Fleet, cell_id: str) -> bool:
    """Whether a cell of that id was ever ordered, by this journal. A scheduler on an empty or older journal does not
    know the newer orders, and must not take a whole fleet for leftovers."""
    cell = parse_cell_id(cell_id)
    if cell is None or was_skipped(fleet, cell):
        return False
    state = fleet.groups.get(cell.group)
    if state is None:
        return cell.generation < (fleet.generations.get(cell.group) or 1)
    slot = state.slots.get(cell.slot)
    unused: int = slot.next_generation if slot else state.first_generation
    return cell.generation < unused


def look_leak(draft: Draft, key: LeakKey) -> None:
    """A provider has a server that nobody wants. Tell the provider to delete it."""
    known = draft.sight.providers.get(key.provider)
    made = known.servers.get(key.cell) if known else None
    if made is None or draft.fleet.cell(key.cell) is not None:
        return
    if made.state is ProviderState.GONE:
        draft.forget_server(key.provider, key.cell)
        return
    if not was_ordered(draft.fleet, key.cell):
        reason = (
            f"provider {key.provider} has {key.cell}, which this journal never ordered, so it is left alone"
        )
        draft.hold(key, HoldRule.UNKNOWN_SERVER, f"{reason}; check that this journal is the fleet's newest")
        return
    command = DecommissionServer(key.provider, key.cell, made.ref, "leaked")
    if draft.provider_was_told(command) is None:
        draft.emit(e.LeakRemoved(key.cell, key.provider, made.ref))
    resend_to_provider(draft, key, command)
