"""What should not be there: cells that an agent shows and nobody ordered there, servers that a provider has and
should not.
"""

from __future__ import annotations

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.commands import Decommission, DecommissionServer, Verb
from galactica.scheduler.core.model.fleet import Fleet, parse_cell_id
from galactica.scheduler.core.model.keys import LeakKey, OrphanKey
from galactica.scheduler.core.model.rules import HoldRule
from galactica.scheduler.core.reconcile.draft import Draft, resend, resend_to_provider
from galactica.scheduler.core.sight.observations import CellState, ProviderState


def look_orphan(draft: Draft, key: OrphanKey) -> None:
    """An agent shows a cell that nobody ordered there. Tell the agent to remove it until it says that it is gone."""
    report = draft.sight.report_of(key.server, key.cell)
    cell = draft.fleet.cell(key.cell)
    if report is None or (cell is not None and cell.server == key.server):
        return
    if report.state is CellState.GONE:
        draft.forget(key.server, key.cell)
        return
    if draft.was_told(key.server, key.cell, Verb.DECOMMISSION) is None:
        reason = (
            "it was not ordered on this server"
            if cell is not None
            else "it is decommissioned, or was never ordered"
        )
        draft.emit(e.OrphanRemoved(key.cell, key.server, reason))
    resend(draft, key, Decommission(key.server, key.cell, "orphan"))


def was_ordered(fleet: Fleet, cell_id: str) -> bool:
    """Whether a cell of that id was ever ordered, by this journal. A scheduler on an empty or older journal does not
    know the newer orders, and must not take a whole fleet for leftovers."""
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
