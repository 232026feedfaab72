"""``apply(fleet, record) -> fleet``: the only way a fleet comes about, and the one table of phase changes.

Pure and deterministic: replaying a journal gives the same fleet. An illegal transition raises; it means that a
decision was wrong, and no fleet may be built on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core import epochs, places, planting, unknown
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import IllegalTransition
from galactica.scheduler.core.model.fleet import (
    DEATHS_KEPT,
    GRAVES_KEPT,
    REVISIONS_KEPT,
    Cell,
    CellId,
    CellKind,
    Death,
    Fleet,
    GroupState,
    Phase,
    Revision,
    Slot,
    Token,
    parse_cell_id,
)
from galactica.scheduler.core.model.rules import OWN_DEATHS
from galactica.scheduler.core.model.spec import GroupKind, fixed_ports
from galactica.scheduler.core.model.succession import was_lost
from galactica.scheduler.core.places import name_of
from galactica.scheduler.core.tallies import placed, put_group, put_server, put_slot, recount, story_of

SLOT_LIVING = 2
"""So many cells of a slot may live at once: one that has it, and the candidate that is to take its place."""

ALIVE = (Phase.ORDERED, Phase.BOOTING, Phase.READY)

CELL_MOVES: dict[type[e.Event], tuple[tuple[Phase, ...], Phase]] = {
    e.CellBooting: ((Phase.ORDERED,), Phase.BOOTING),
    e.CellReady: ((Phase.ORDERED, Phase.BOOTING), Phase.READY),
    e.CellCondemned: (ALIVE, Phase.CONDEMNED),
    e.CellDraining: ((Phase.CONDEMNED,), Phase.DRAINING),
    e.CellDecommissioned: ((Phase.CONDEMNED, Phase.DRAINING), Phase.DECOMMISSIONED),
}
"""Event to the phases it may come from and the one it leads to."""


def apply(fleet: Fleet, record: e.Record) -> Fleet:
    """The fleet after one more fact. Raises IllegalTransition."""
    if record.position != fleet.position + 1:
        raise IllegalTransition(f"record {record.position} does not follow position {fleet.position}")
    after = _APPLY[type(record.event)](fleet, record, record.event)
    return replace(after, position=record.position, at=max(fleet.at, record.at))


# --- the fleet itself -------------------------------------------------------------------------------------------


def _token_created(fleet: Fleet, record: e.Record, event: e.TokenCreated) -> Fleet:
    token = Token(event.token, event.secret_sha256, event.uses, event.expires_at, event.server)
    return replace(fleet, tokens=_without_expired(fleet.tokens, record.at).insert(token.id, token))


def _without_expired(tokens: HashTrieMap[str, Token], now: float) -> HashTrieMap[str, Token]:
    for token in list(tokens.values()):
        if token.expires_at <= now:
            tokens = tokens.discard(token.id)
    return tokens


def _nothing(fleet: Fleet, _: e.Record, __: e.Event) -> Fleet:
    """A fact worth keeping that changes no state."""
    return fleet


# --- groups -----------------------------------------------------------------------------------------------------


def _group_applied(fleet: Fleet, record: e.Record, event: e.GroupApplied) -> Fleet:
    name = event.group.name
    before = fleet.groups.get(name)
    revision = Revision(event.revision, event.digest, event.group.spec)
    if before is None:
        fleet, first_generation = unknown.first_generation(fleet, name)
        state = GroupState(
            group=event.group,
            digest=event.digest,
            revision=event.revision,
            revisions=(revision,),
            first_generation=first_generation,
            longest_lease_seconds=event.group.lease_seconds,
            last_position=record.position,
        )
        generations = fleet.generations.discard(name)
        return replace(fleet, groups=fleet.groups.insert(name, state), generations=generations)
    revisions = before.revisions
    if event.revision != before.revision:
        revisions = (*revisions, revision)[-REVISIONS_KEPT:]
    state = replace(
        before,
        group=event.group,
        digest=event.digest,
        revision=event.revision,
        revisions=revisions,
        deleted=False,
        longest_lease_seconds=max(before.longest_lease_seconds, event.group.lease_seconds),
        last_position=record.position,
    )
    if event.digest != before.digest:
        state = replace(state, tally=recount(state), newest_ready_at=0.0)
    return replace(fleet, groups=fleet.groups.insert(name, state))


def _group_deleted(fleet: Fleet, record: e.Record, event: e.GroupDeleted) -> Fleet:
    state = _group(fleet, event.name, record)
    return put_group(fleet, replace(state, deleted=True, last_position=record.position))


def _group(fleet: Fleet, name: str, record: e.Record) -> GroupState:
    state = fleet.groups.get(name)
    if state is None:
        raise IllegalTransition(f"{name_of(record)}: there is no group {name}")
    return state


# --- cells ------------------------------------------------------------------------------------------------------


def _cell_ordered(fleet: Fleet, record: e.Record, event: e.CellOrdered) -> Fleet:
    parsed = _parsed(event.cell)
    state = _group(fleet, parsed.group, record)
    slot = state.slots.get(parsed.slot) or Slot(next_generation=state.first_generation)
    if parsed.generation != slot.next_generation:
        raise IllegalTransition(f"{event.cell}: the slot's next generation is {slot.next_generation}")
    return _placed(fleet, record, event, event.replaces)


def _cell_adopted(fleet: Fleet, record: e.Record, event: e.CellAdopted) -> Fleet:
    if not unknown.is_unknown(fleet, event.server, event.cell):
        raise IllegalTransition(f"{event.cell} on {event.server} is not one that nobody ordered")
    fleet = unknown.owned(unknown.decided(fleet, event.server, event.cell), event.cell)
    return _placed(fleet, record, event, "")


def _parsed(cell_id: str) -> CellId:
    parsed = parse_cell_id(cell_id)
    if parsed is None:
        raise IllegalTransition(f"invalid cell id: {cell_id!r}")
    return parsed


def _placed(fleet: Fleet, record: e.Record, event: e.CellOrdered | e.CellAdopted, replaces: str) -> Fleet:
    """A new cell takes its slot, and its place on a server."""
    parsed = _parsed(event.cell)
    state = _group(fleet, parsed.group, record)
    slot = state.slots.get(parsed.slot) or Slot(next_generation=state.first_generation)
    has_room_for_candidate = isinstance(event, e.CellOrdered) and len(slot.living) < SLOT_LIVING
    if slot.living and not has_room_for_candidate:
        raise IllegalTransition(f"{event.cell}: {story_of(slot.living[-1])} still holds the slot")
    cell = Cell(
        id=event.cell,
        group=parsed.group,
        slot=parsed.slot,
        generation=parsed.generation,
        phase=Phase.ORDERED,
        digest=event.digest,
        revision=event.revision,
        server=event.server,
        ordered_at=record.at,
        resources=event.resources,
        kind=CellKind.SERVER if state.group.kind is GroupKind.POOL else CellKind.CONTAINER,
        replaces=replaces,
        ports=fixed_ports(state.spec_of(event.digest) or state.group.spec),
        last_position=record.position,
    )
    older = tuple(replace(c, replaced_by=cell.id) if c.id == replaces else c for c in slot.cells)
    fleet, state = placed(fleet, state, cell, 1)
    if replaces and state.group.replace.count and was_lost(fleet, slot, replaces):
        newest = (*state.replaced_at, record.at)[-state.group.replace.count :]
        state = replace(state, replaced_at=newest)
    next_generation = max(slot.next_generation, parsed.generation + 1)
    return put_slot(fleet, state, parsed.slot, Slot((*older, cell), next_generation))


def _cell_moved(fleet: Fleet, record: e.Record, event: Any) -> Fleet:
    state, slot, cell = _find(fleet, event.cell, record)
    allowed, phase = CELL_MOVES[type(event)]
    if cell.phase not in allowed:
        raise IllegalTransition(f"{name_of(record)} cannot follow: {story_of(cell)}")
    moved = replace(cell, phase=phase, last_position=record.position, **_details(event, record.at))
    if phase is Phase.READY and cell.digest == state.digest:
        state = replace(state, newest_ready_at=record.at)
    if isinstance(event, e.CellCondemned):
        fleet, state = _remember_death(fleet, state, cell, event, record.at)
    if phase is Phase.DECOMMISSIONED:
        return _bury(fleet, state, slot, moved)
    cells = tuple(moved if c.id == cell.id else c for c in slot.cells)
    return put_slot(fleet, state, cell.slot, replace(slot, cells=cells))


def _remember_death(
    fleet: Fleet, state: GroupState, cell: Cell, event: e.CellCondemned, at: float
) -> tuple[Fleet, GroupState]:
    """What backoff and diagnosis need to know."""
    if event.backoff is not None:
        state = replace(state, backoff=event.backoff)
    if event.rule not in OWN_DEATHS or cell.kind is CellKind.SERVER:
        return fleet, state
    death = Death(cell.group, cell.digest, cell.server, event.rule, at)
    server = fleet.servers.get(cell.server)
    if server is not None:
        fleet = put_server(fleet, replace(server, deaths=(*server.deaths, death)[-DEATHS_KEPT:]))
    return fleet, replace(state, deaths=(*state.deaths, death)[-DEATHS_KEPT:])


def _shell_opened(fleet: Fleet, record: e.Record, event: e.ShellOpened) -> Fleet:
    """No move: whoever looks into a cell decides nothing about its phase, but when it must go."""
    state, slot, cell = _find(fleet, event.cell, record)
    touched = replace(cell, dies_at=event.dies_at, last_position=record.position)
    cells = tuple(touched if c.id == cell.id else c for c in slot.cells)
    return put_slot(fleet, state, cell.slot, replace(slot, cells=cells))


def _details(event: e.Event, at: float) -> dict[str, Any]:
    match event:
        case e.CellBooting(runtime_id=ref) if ref:
            return {"runtime_id": ref}
        case e.CellReady():
            return {"ready_at": at, "endpoints": event.endpoints, "runtime_id": event.runtime_id}
        case e.CellCondemned():
            return {"condemned_at": at, "condemned_by": event.rule, "condemned_health": event.health}
        case e.CellDecommissioned():
            return {"decommissioned_at": at}
    return {}


def _bury(fleet: Fleet, state: GroupState, slot: Slot, cell: Cell) -> Fleet:
    fleet, state = placed(fleet, state, cell, -1)
    if cell.kind is CellKind.SERVER:
        # A cell's id never comes again.
        fleet = unknown.forgotten_on(replace(fleet, servers=fleet.servers.discard(cell.id)), cell.id)
    graves = fleet.graves.insert(fleet.burials % GRAVES_KEPT, cell)
    fleet = replace(fleet, graves=graves, burials=fleet.burials + 1)
    cells = tuple(c for c in slot.cells if c.id != cell.id)
    return put_slot(fleet, state, cell.slot, replace(slot, cells=cells))


def _find(fleet: Fleet, cell_id: str, record: e.Record) -> tuple[GroupState, Slot, Cell]:
    cell = fleet.cell(cell_id)
    if cell is None:
        raise IllegalTransition(f"{name_of(record)}: {cell_id} does not exist or is decommissioned")
    state = fleet.groups[cell.group]
    return state, state.slots[cell.slot], cell


def _storm_released(fleet: Fleet, _: e.Record, event: e.StormReleased) -> Fleet:
    return replace(fleet, released=fleet.released.insert(event.pool, event.until))


_APPLY: dict[type[e.Event], Callable[[Fleet, e.Record, Any], Fleet]] = {
    e.SchedulerStarted: epochs.started,
    e.GroupApplied: _group_applied,
    e.GroupDeleted: _group_deleted,
    e.CellOrdered: _cell_ordered,
    e.CellBooting: _cell_moved,
    e.CellReady: _cell_moved,
    e.CellCondemned: _cell_moved,
    e.CellDraining: _cell_moved,
    e.CellDecommissioned: _cell_moved,
    e.EpochClaimed: epochs.claimed,
    e.RegrowthBegan: planting.began,
    e.ServerRecognised: planting.recognised,
    e.GenomePlanted: planting.planted,
    e.RegrowthEnded: planting.ended,
    e.UnknownCellFound: unknown.cell_found,
    e.UnknownCellsTooMany: unknown.too_many,
    e.CellAdopted: _cell_adopted,
    e.UnknownCellCondemned: unknown.cell_condemned,
    e.OrphanRemoved: unknown.orphan_removed,
    e.ServerEnrolled: places.server_enrolled,
    e.ServerJoined: places.server_joined,
    e.MachineRecognised: places.machine_recognised,
    e.ServerChanged: places.server_changed,
    e.ServerCondemned: places.server_condemned,
    e.MaintenanceBegan: places.maintenance_began,
    e.MaintenanceEnded: places.maintenance_ended,
    e.ServerDecommissioned: places.server_decommissioned,
    e.TokenCreated: _token_created,
    e.LeakRemoved: _nothing,
    e.StormReleased: _storm_released,
    e.ShellOpened: _shell_opened,
    e.OperatorEnrolled: _nothing,
    e.CallRefused: _nothing,
    e.JournalResumed: _nothing,
}
