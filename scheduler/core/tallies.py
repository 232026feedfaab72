"""Counts that rules and placement rely on, kept current with every change, so that no rule has to count."""

from __future__ import annotations

from typing import TypeVar

from msgspec.structs import replace
from rpds import HashTrieMap

from galactica.scheduler.core.model.events import IllegalTransition
from galactica.scheduler.core.model.fleet import Cell, CellKind, Fleet, GroupState, Phase, Server, Slot, Tally
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.core.model.succession import is_there, still_waits

_K = TypeVar("_K", str, int)


def put_group(fleet: Fleet, state: GroupState) -> Fleet:
    """Store a group; a deleted one goes with its last cell, leaving only its first unused generation."""
    name = state.group.name
    if state.deleted and not (state.tally.ready or state.tally.booting or state.tally.condemned):
        unused = max((slot.next_generation for slot in state.slots.values()), default=state.first_generation)
        generations = fleet.generations.insert(name, unused)
        return replace(fleet, groups=fleet.groups.discard(name), generations=generations)
    return replace(fleet, groups=fleet.groups.insert(name, state))


# --- tallies ----------------------------------------------------------------------------------------------------


def recount(state: GroupState) -> Tally:
    total = Tally()
    for slot in state.slots.values():
        total = _add(total, _tally(slot, state.digest), 1)
    return total


def _tally(slot: Slot, digest: str) -> Tally:
    living = slot.living
    ready = any(cell.phase is Phase.READY for cell in living)
    waiting = any(map(still_waits, slot.cells))
    has_candidate = len(living) > 1
    outdated = sum(cell.digest != digest for cell in living)
    there = len(living) + sum(map(is_there, slot.cells))
    return Tally(
        ready=int(ready),
        booting=int(bool(living) and not ready),
        condemned=len(slot.cells) - len(living),
        manned=int(ready or waiting),
        replacing=int(waiting or has_candidate),
        surging=int((waiting and bool(living)) or has_candidate),
        outdated=outdated,
        renewing=outdated if has_candidate and living[-1].digest == digest else 0,
        extra=max(0, there - 1),
    )


def _add(left: Tally, right: Tally, sign: int) -> Tally:
    return Tally(
        left.ready + sign * right.ready,
        left.booting + sign * right.booting,
        left.condemned + sign * right.condemned,
        left.manned + sign * right.manned,
        left.replacing + sign * right.replacing,
        left.surging + sign * right.surging,
        left.outdated + sign * right.outdated,
        left.renewing + sign * right.renewing,
        left.extra + sign * right.extra,
    )


def put_slot(fleet: Fleet, state: GroupState, number: int, slot: Slot) -> Fleet:
    before = state.slots.get(number)
    tally = state.tally if before is None else _add(state.tally, _tally(before, state.digest), -1)
    tally = _add(tally, _tally(slot, state.digest), 1)
    return put_group(fleet, replace(state, slots=state.slots.insert(number, slot), tally=tally))


def _counted(counts: HashTrieMap[_K, int], key: _K, by: int) -> HashTrieMap[_K, int]:
    count = (counts.get(key) or 0) + by
    return counts.insert(key, count) if count > 0 else counts.discard(key)


# --- servers ----------------------------------------------------------------------------------------------------


def placed(fleet: Fleet, state: GroupState, cell: Cell, sign: int) -> tuple[Fleet, GroupState]:
    """Account for a container's place, on its server and in its group. A server takes no place on another."""
    if cell.kind is CellKind.SERVER:
        return fleet, state
    fleet = _on_server(fleet, cell, sign)
    return fleet, replace(state, per_server=_counted(state.per_server, cell.server, sign))


def _on_server(fleet: Fleet, cell: Cell, sign: int) -> Fleet:
    """Account for a cell's place on its server: +1 when it is ordered, -1 when it is decommissioned."""
    server = fleet.servers.get(cell.server)
    if server is None:
        raise IllegalTransition(f"{cell.id}: there is no server {cell.server}")
    return put_server(fleet, with_cell(server, cell, sign))


def with_cell(server: Server, cell: Cell, sign: int) -> Server:
    """The server with the cell's place taken (+1) or free again (-1)."""
    used = Resources(
        server.used.cpu_millis + sign * cell.resources.cpu_millis,
        server.used.memory_bytes + sign * cell.resources.memory_bytes,
        server.used.pids + sign * cell.resources.pids,
    )
    ports = server.ports
    for port in cell.ports:
        ports = _counted(ports, port, sign)
    cells = server.cells.insert(cell.id) if sign > 0 else server.cells.discard(cell.id)
    return replace(server, used=used, ports=ports, cells=cells)


def put_server(fleet: Fleet, server: Server) -> Fleet:
    return replace(fleet, servers=fleet.servers.insert(server.id, server))


def story_of(cell: Cell) -> str:
    """A cell's life so far, for an error."""
    times = [f"ordered at {cell.ordered_at:.3f}"]
    for word, at in (
        ("ready", cell.ready_at),
        ("condemned", cell.condemned_at),
        ("gone", cell.decommissioned_at),
    ):
        if at is not None:
            times.append(f"{word} at {at:.3f}")
    return f"{cell.id} on {cell.server} is {cell.phase} ({', '.join(times)})"
