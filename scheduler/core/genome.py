"""Reads the genome from a fleet, and writes it as bytes.

What agents know is not in it: which cells there are, and where. So it changes only when what is wanted changes.
"""

from __future__ import annotations

import zlib

import msgspec

from galactica.scheduler.core.model.fleet import (
    Fleet,
    GroupState,
    Phase,
    Revision,
    Server,
    server_facts,
)
from galactica.scheduler.core.model.genome import Genome, GenomeGroup, GenomeServer

GENERATIONS_RESERVED = 100
"""Generations are reserved in such lots: so the genome stays the same while cells are replaced one by one, and the ids
of cells that were ordered after the newest genome are not given out again."""
UNPACKED_BYTES_LIMIT = 64 * 1024 * 1024
_COMPRESSION_LEVEL = 9


class GenomeDamaged(ValueError):
    """The bytes are no genome that this version can read."""


class GenomeReader:
    """Reads genomes of one fleet as it goes on. Groups that did not change are not looked through again."""

    def __init__(self) -> None:
        self._groups: dict[str, tuple[GroupState, GenomeGroup]] = {}

    def read(self, fleet: Fleet) -> Genome:
        groups: dict[str, tuple[GroupState, GenomeGroup]] = {}
        unused = {name: reserved(generation) for name, generation in fleet.generations.items()}
        for name, state in fleet.groups.items():
            if state.deleted:
                unused[name] = _unused(state)
                continue
            known = self._groups.get(name)
            groups[name] = known if known is not None and known[0] is state else (state, _group(state))
        self._groups = groups
        servers = (_server(fleet, fleet.servers[name]) for name in sorted(fleet.servers))
        return Genome(
            tuple(groups[name][1] for name in sorted(groups)),
            tuple(server for server in servers if server is not None),
            dict(sorted(unused.items())),
            fleet.least_generation,
        )


def _group(state: GroupState) -> GenomeGroup:
    used = {cell.digest for slot in state.slots.values() for cell in slot.cells}
    older = (one for one in state.revisions if one.digest in used and one.number != state.revision)
    current = Revision(state.revision, state.digest, state.group.spec)
    return GenomeGroup(state.group, (*older, current), _unused(state))


def _unused(state: GroupState) -> int:
    newest = max((slot.next_generation for slot in state.slots.values()), default=1)
    return reserved(max(newest, state.first_generation))


def reserved(generation: int) -> int:
    return (generation // GENERATIONS_RESERVED + 2) * GENERATIONS_RESERVED


def _server(fleet: Fleet, server: Server) -> GenomeServer | None:
    """None where it is nothing that a new scheduler has to know: it never joined, or it is lost."""
    facts = server_facts(server)
    if server.pool:
        cell = fleet.cell(server.id)
        if cell is None or cell.is_condemned or server.phase is not Phase.READY:
            return None
        return GenomeServer(
            server.id,
            server.generation,
            **facts,
            pool=server.pool,
            digest=cell.digest,
            revision=cell.revision,
            ref=cell.runtime_id,
        )
    if server.phase is Phase.READY:
        return GenomeServer(server.id, server.generation, **facts)
    if server.is_drained and not server.is_lost and server.phase is not Phase.ORDERED:
        return GenomeServer(server.id, server.generation, phase=server.phase, **facts)
    return None


# --- as bytes -----------------------------------------------------------------------------------------------------


def encode(genome: Genome) -> bytes:
    return zlib.compress(msgspec.json.encode(genome), _COMPRESSION_LEVEL)


def decode(data: bytes) -> Genome:
    """Raises GenomeDamaged."""
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(data, UNPACKED_BYTES_LIMIT)
        if not unpacking.eof:
            is_large = len(text) >= UNPACKED_BYTES_LIMIT
            why = f"it is larger than {UNPACKED_BYTES_LIMIT} bytes" if is_large else "it is not complete"
            raise GenomeDamaged(f"the genome is damaged: {why}")
        return msgspec.json.decode(text, type=Genome)
    except (zlib.error, msgspec.DecodeError) as error:
        raise GenomeDamaged(f"the genome is damaged: {error}") from error


def nothing_wanted(fleet: Fleet) -> bool:
    """Whether the journal holds nothing of a fleet, so that one can be grown from it."""
    return not (len(fleet.groups) or len(fleet.servers) or len(fleet.generations))
