"""The units of work: what can be looked at, what holds it back, and where a cell belongs."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Fleet, Server, parse_cell_id


def pool_of(key: Key, fleet: Fleet) -> str:
    if isinstance(key, SlotKey):
        return key.group
    server = fleet.servers.get(key.server) if isinstance(key, ServerKey) else None
    return server.pool if server else ""


def group_of(key: Key) -> str:
    return key.group if isinstance(key, SlotKey) else ""


class SlotKey(Struct, frozen=True, order=True):
    """The unit of work of a container group."""

    group: str
    slot: int


class ServerKey(Struct, frozen=True, order=True):
    """The unit of work of a server."""

    server: str


class OrphanKey(Struct, frozen=True, order=True):
    """A cell that a server shows and that should not be there."""

    server: str
    cell: str


class LeakKey(Struct, frozen=True, order=True):
    """A server that a provider has and that should not be there."""

    provider: str
    cell: str


Key = SlotKey | ServerKey | OrphanKey | LeakKey


class Hold(Struct, frozen=True):
    """Something that would be done but for a rule. ``next_look_at`` None: when news comes."""

    key: Key
    rule: str
    reason: str
    next_look_at: float | None = None


class Storm(Struct, frozen=True):
    """More silence in a pool ("" stands for the servers that joined by themselves) than the guard believes."""

    id: str
    pool: str
    silent: int
    of: int
    since: float
    expires_at: float
    reason: str


def slot_key_of(cell_id: str, cause: str) -> dict[Key, str]:
    """The slot that a cell's id names."""
    parsed = parse_cell_id(cell_id)
    return {SlotKey(parsed.group, parsed.slot): cause} if parsed else {}


def own_slot(server: Server, cause: str) -> dict[Key, str]:
    """The slot that a pool's server itself is in."""
    return slot_key_of(server.id, cause) if server.pool else {}


def cells_of(server: Server, cause: str) -> Mapping[Key, str]:
    """The slots that a server's cells are in, as dirty keys."""
    keys: dict[Key, str] = {}
    for cell_id in server.cells:
        parsed = parse_cell_id(cell_id)
        if parsed is not None:
            keys[SlotKey(parsed.group, parsed.slot)] = cause
    return keys
