"""Encodes a fleet as bytes and decodes it without loss. Pure.

``snapshot_format`` has the structs on disk; what they forbid needs a new VERSION.
"""

from __future__ import annotations

import zlib

import msgspec
from msgspec.structs import asdict, astuple, replace
from rpds import HashTrieMap, HashTrieSet

from galactica.scheduler.core.model.fleet import (
    Backoff,
    Cell,
    Fleet,
    GroupState,
    Regrowth,
    Server,
    Slot,
    Start,
    Tally,
    Token,
    UnknownCell,
)
from galactica.scheduler.core.model.spec import Resources
from galactica.scheduler.core.tallies import recount
from galactica.scheduler.core.unknown import slot_of
from galactica.scheduler.journal.snapshot_format import (
    BackoffOnDisk,
    CellOnDisk,
    FleetOnDisk,
    GroupOnDisk,
    ServerOnDisk,
    SlotOnDisk,
    TallyOnDisk,
    TokenOnDisk,
)

VERSION = 2
"""Above the last release's as soon as there are fields that it does not have. 1: release 0.1."""
_OLDEST_VERSION = 1
_MAGIC = b"GALFLEET"
_VERSION_BYTES = 4
_HEADER_BYTES = len(_MAGIC) + _VERSION_BYTES
_COMPRESSION_LEVEL = 1
"""The fastest level: a fleet has so many repetitions that even this level removes most of them."""


class SnapshotDamaged(ValueError):
    """The bytes are not a complete snapshot."""


class SnapshotTooNew(ValueError):
    """A newer program wrote the snapshot."""


def encode(fleet: Fleet) -> bytes:
    """Header (magic, version) and the compressed fleet. Equal fleets give equal bytes, except for the order of maps."""
    words = _Words()
    first, too = _unknown_to_disk(fleet)
    write = msgspec.msgpack.Encoder().encode
    disk = FleetOnDisk(
        position=fleet.position,
        at=fleet.at,
        epoch=fleet.epoch,
        groups={
            name: msgspec.Raw(write(_group_to_disk(state, words))) for name, state in fleet.groups.items()
        },
        servers={name: _server_to_disk(server) for name, server in fleet.servers.items()},
        tokens={name: TokenOnDisk(*astuple(token)) for name, token in fleet.tokens.items()},
        generations=dict(fleet.generations.items()),
        graves=[(number, _cell_to_disk(cell, words)) for number, cell in fleet.graves.items()],
        burials=fleet.burials,
        words=words.in_order,
        released=dict(fleet.released.items()),
        silences=dict(fleet.silences.items()),
        unknown=first,
        overtaken_at=fleet.overtaken_at,
        skipped=dict(fleet.skipped.items()),
        regrown_at=fleet.regrown_at,
        regrowth=(fleet.regrowth.since, fleet.regrowth.is_planted) if fleet.regrowth else None,
        least_generation=fleet.least_generation,
        starts={epoch: (start.name, start.position) for epoch, start in fleet.starts.items()},
        strange_starts=fleet.strange_starts,
        unwanted=tuple(one.cell for one in fleet.unwanted if one not in too),
        unknown_too=tuple((one.cell, one.server) for one in too),
        unwanted_too=tuple((one.cell, one.server) for one in fleet.unwanted if one in too),
        shown=dict(fleet.shown.items()),
    )
    body = zlib.compress(write(disk), _COMPRESSION_LEVEL)
    return _MAGIC + VERSION.to_bytes(_VERSION_BYTES, "big") + body


def decode(data: bytes) -> Fleet:
    """The encoded fleet. Raises SnapshotTooNew, SnapshotDamaged."""
    _check_header(data)
    try:
        disk = msgspec.msgpack.decode(zlib.decompress(data[_HEADER_BYTES:]), type=FleetOnDisk)
        return _fleet_from_disk(disk)
    except (zlib.error, msgspec.DecodeError, IndexError) as error:
        raise SnapshotDamaged(
            f"the snapshot is damaged ({error}). Put a backup of the data directory in its place."
        ) from error


def _check_header(data: bytes) -> None:
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        raise SnapshotDamaged("not a snapshot of a fleet: the header is invalid")
    version = int.from_bytes(data[len(_MAGIC) : _HEADER_BYTES], "big")
    if version > VERSION:
        raise SnapshotTooNew(
            f"the snapshot has version {version}, but this program reads versions up to {VERSION}: a newer galactica "
            f"wrote it. Use that version or a later one."
        )
    if version < _OLDEST_VERSION:
        raise SnapshotDamaged(f"the snapshot is damaged: version {version} does not exist")


# --- to disk ----------------------------------------------------------------------------------------------------


class _Words:
    """Numbers the words."""

    def __init__(self) -> None:
        self.in_order: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, word: str) -> int:
        number = self._numbers.get(word)
        if number is None:
            number = self._numbers[word] = len(self.in_order)
            self.in_order.append(word)
        return number


def _cell_to_disk(cell: Cell, words: _Words) -> CellOnDisk:
    """Positional arguments are faster, and this runs for every cell of the fleet."""
    resources = cell.resources
    return CellOnDisk(
        cell.id,
        words.number(cell.group),
        cell.slot,
        cell.generation,
        cell.phase,
        words.number(cell.digest),
        cell.revision,
        words.number(cell.server),
        cell.ordered_at,
        resources.cpu_millis,
        resources.memory_bytes,
        resources.pids,
        cell.kind,
        cell.ready_at,
        cell.condemned_at,
        cell.decommissioned_at,
        words.number(cell.condemned_by),
        cell.condemned_health,
        cell.replaces,
        cell.replaced_by,
        cell.endpoints,
        cell.runtime_id,
        cell.last_position,
        cell.dies_at,
        cell.ports,
    )


def _unknown_to_disk(fleet: Fleet) -> tuple[dict[str, dict[str, str]], set[UnknownCell]]:
    """One server for each cell, by slot; and the cells with their other servers."""
    first: dict[str, dict[str, str]] = {}
    too: set[UnknownCell] = set()
    for slot, cells in fleet.unknown.items():
        servers = first[slot] = {}
        for one in sorted(cells):
            if servers.setdefault(one.cell, one.server) != one.server:
                too.add(one)
    return first, too


def _group_to_disk(state: GroupState, words: _Words) -> GroupOnDisk:
    return GroupOnDisk(
        group=state.group,
        digest=state.digest,
        revision=state.revision,
        revisions=state.revisions,
        first_generation=state.first_generation,
        slots=[
            SlotOnDisk(number, slot.next_generation, [_cell_to_disk(cell, words) for cell in slot.cells])
            for number, slot in state.slots.items()
        ],
        tally=TallyOnDisk(**asdict(state.tally)),
        backoff=BackoffOnDisk(*astuple(state.backoff)),
        per_server=dict(state.per_server.items()),
        deleted=state.deleted,
        last_position=state.last_position,
        deaths=state.deaths,
        longest_lease_seconds=state.longest_lease_seconds,
        replaced_at=state.replaced_at,
        newest_ready_at=state.newest_ready_at,
    )


def _server_to_disk(server: Server) -> ServerOnDisk:
    return ServerOnDisk(
        id=server.id,
        generation=server.generation,
        phase=server.phase,
        labels=server.labels,
        capacity=server.capacity,
        disk_bytes=server.disk_bytes,
        runtimes=server.runtimes,
        agent_version=server.agent_version,
        joined_at=server.joined_at,
        condemned_at=server.condemned_at,
        condemned_by=server.condemned_by,
        condemned_health=server.condemned_health,
        used=server.used,
        cells=list(server.cells),
        last_position=server.last_position,
        pool=server.pool,
        deaths=server.deaths,
        ports=dict(server.ports.items()),
        maintenance=server.maintenance,
        machine=server.machine,
    )


# --- from disk --------------------------------------------------------------------------------------------------


def _fleet_from_disk(disk: FleetOnDisk) -> Fleet:
    words = disk.words
    first = {
        cell: UnknownCell(cell, server) for cells in disk.unknown.values() for cell, server in cells.items()
    }
    read = msgspec.msgpack.Decoder(GroupOnDisk).decode
    return Fleet(
        position=disk.position,
        at=disk.at,
        epoch=disk.epoch,
        groups=HashTrieMap(
            (name, _group_from_disk(read(group), words)) for name, group in disk.groups.items()
        ),
        servers=HashTrieMap((name, _server_from_disk(server)) for name, server in disk.servers.items()),
        tokens=HashTrieMap((name, Token(*astuple(token))) for name, token in disk.tokens.items()),
        generations=HashTrieMap(disk.generations),
        graves=HashTrieMap((number, _cell_from_disk(cell, words)) for number, cell in disk.graves),
        burials=disk.burials,
        released=HashTrieMap(disk.released),
        silences=HashTrieMap(disk.silences),
        unknown=_unknown_from_disk(disk),
        shown=HashTrieMap(disk.shown),
        overtaken_at=disk.overtaken_at,
        skipped=HashTrieMap(disk.skipped),
        regrown_at=disk.regrown_at,
        regrowth=Regrowth(*disk.regrowth) if disk.regrowth else None,
        least_generation=disk.least_generation,
        starts=HashTrieMap((epoch, Start(*start)) for epoch, start in disk.starts.items()),
        strange_starts=disk.strange_starts,
        unwanted=HashTrieSet(
            [
                *(first[cell] for cell in disk.unwanted if cell in first),
                *(UnknownCell(*one) for one in disk.unwanted_too),
            ]
        ),
    )


def _unknown_from_disk(disk: FleetOnDisk) -> HashTrieMap[str, HashTrieSet[UnknownCell]]:
    by_slot = {
        slot: [UnknownCell(cell, server) for cell, server in cells.items()]
        for slot, cells in disk.unknown.items()
    }
    for cell, server in disk.unknown_too:
        by_slot[slot_of(cell)].append(UnknownCell(cell, server))
    return HashTrieMap((slot, HashTrieSet(cells)) for slot, cells in by_slot.items())


def _cell_from_disk(cell: CellOnDisk, words: list[str]) -> Cell:
    """Positional arguments are faster, and this runs for every cell of the fleet."""
    return Cell(
        cell.id,
        words[cell.group],
        cell.slot,
        cell.generation,
        cell.phase,
        words[cell.digest],
        cell.revision,
        words[cell.server],
        cell.ordered_at,
        Resources(cell.cpu_millis, cell.memory_bytes, cell.pids),
        cell.kind,
        cell.ready_at,
        cell.condemned_at,
        cell.decommissioned_at,
        words[cell.condemned_by],
        cell.condemned_health,
        cell.replaces,
        cell.replaced_by,
        cell.endpoints,
        cell.runtime_id,
        cell.last_position,
        cell.ports,
        cell.dies_at,
    )


def _group_from_disk(group: GroupOnDisk, words: list[str]) -> GroupState:
    slots = (
        (
            slot.number,
            Slot(tuple([_cell_from_disk(cell, words) for cell in slot.cells]), slot.next_generation),
        )
        for slot in group.slots
    )
    state = GroupState(
        group=group.group,
        digest=group.digest,
        revision=group.revision,
        revisions=group.revisions,
        first_generation=group.first_generation,
        slots=HashTrieMap(slots),
        tally=Tally(**asdict(group.tally)),
        backoff=Backoff(*astuple(group.backoff)),
        per_server=HashTrieMap(group.per_server),
        deleted=group.deleted,
        deaths=group.deaths,
        longest_lease_seconds=group.longest_lease_seconds,
        replaced_at=group.replaced_at,
        newest_ready_at=group.newest_ready_at,
        last_position=group.last_position,
    )
    return state if state.tally.manned >= 0 else replace(state, tally=recount(state))


def _server_from_disk(server: ServerOnDisk) -> Server:
    return Server(
        id=server.id,
        generation=server.generation,
        phase=server.phase,
        labels=server.labels,
        capacity=server.capacity,
        disk_bytes=server.disk_bytes,
        runtimes=server.runtimes,
        agent_version=server.agent_version,
        joined_at=server.joined_at,
        condemned_at=server.condemned_at,
        condemned_by=server.condemned_by,
        condemned_health=server.condemned_health,
        used=server.used,
        cells=HashTrieSet(server.cells),
        ports=HashTrieMap(server.ports),
        maintenance=server.maintenance,
        machine=server.machine,
        pool=server.pool,
        deaths=server.deaths,
        last_position=server.last_position,
    )
