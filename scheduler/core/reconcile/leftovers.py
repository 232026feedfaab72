"""What should not be there: cells that an agent shows and nobody ordered there, servers that a provider has and
should not.
"""

from __future__ import annotations

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, DecommissionServer, Verb
from galactica.scheduler.core.model.fleet import Fleet, parse_cell_id
from galactica.scheduler.core.model.keys import LeakKey, OrphanKey
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.reconcile.draft import Draft, send_when_due, tell_provider_when_due
from galactica.scheduler.core.sight.observations import CellState, ProviderState

# --- what does not belong there -----------------------------------------------------------------------------------


def look_orphan(draft: Draft, key: OrphanKey) -> None:
    """A cell that is shown where none was ordered: tell the agent to remove it until it says that it is gone."""
    report = draft.sight.report_of(key.server, key.cell)
    cell = draft.fleet.cell(key.cell)
    if report is None or (cell is not None and cell.server == key.server):
        return
    if report.state is CellState.GONE:
        draft.forget(key.server, key.cell)
        return
    if draft.was_told(key.server, key.cell, Verb.DECOMMISSION) is None:
        reason = "nobody ordered it here" if cell is not None else "it is decommissioned or was never ordered"
        draft.emit(e.OrphanRemoved(key.cell, key.server, reason))
    send_when_due(draft, key, Decommission(key.server, key.cell, "orphan"))


def was_ordered(fleet: Fleet, cell_id: str) -> bool:
    """Whether a cell of that id ever was. A scheduler on an empty or an older journal knows nothing of what was
    ordered since, and must not take a whole fleet for its leftovers."""
    cell = parse_cell_id(cell_id)
    if cell is None:
        return False
    state = fleet.groups.get(cell.group)
    if state is None:
        return cell.generation < (fleet.generations.get(cell.group) or 1)
    slot = state.slots.get(cell.slot)
    unused: int = slot.next_generation if slot else state.first_generation
    return cell.generation < unused


def look_leak(draft: Draft, key: LeakKey) -> None:
    """The same for a server that a provider has and nobody wants."""
    known = draft.sight.providers.get(key.provider)
    made = known.servers.get(key.cell) if known else None
    if made is None or draft.fleet.cell(key.cell) is not None:
        return
    if made.state is ProviderState.GONE:
        draft.forget_server(key.provider, key.cell)
        return
    if not was_ordered(draft.fleet, key.cell):
        reason = f"provider {key.provider} has {key.cell}, which this journal never ordered, so it is let be"
        draft.hold(key, HoldRule.UNKNOWN_SERVER, f"{reason}; is the journal the newest one of this fleet?")
        return
    if draft.provider_was_told(key.provider, key.cell, Verb.DECOMMISSION) is None:
        draft.emit(e.LeakRemoved(key.cell, key.provider, made.ref))
    tell_provider_when_due(draft, key, DecommissionServer(key.provider, key.cell, made.ref, "leaked"))
