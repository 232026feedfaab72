"""How a fleet is grown anew from its genome: what the events of it change."""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core import unknown
from galactica.scheduler.core.genome import reserved
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import IllegalTransition
from galactica.scheduler.core.model.fleet import (
    Cell,
    CellKind,
    Fleet,
    GroupState,
    Phase,
    Regrowth,
    Server,
    Slot,
    parse_cell_id,
    server_facts,
)
from galactica.scheduler.core.model.genome import GenomeGroup, GenomeServer
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import GroupKind
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.tallies import put_server, put_slot


def began(fleet: Fleet, record: e.Record, _: e.RegrowthBegan) -> Fleet:
    if fleet.regrowth is not None or len(fleet.groups):
        raise IllegalTransition("a fleet that wants something is not grown anew")
    return replace(fleet, regrowth=Regrowth(record.at), regrown_at=record.at)


def recognised(fleet: Fleet, record: e.Record, event: e.ServerRecognised) -> Fleet:
    if fleet.regrowth is None or event.server in fleet.servers:
        raise IllegalTransition(f"server {event.server} cannot be recognised: it is known, or has to enrol")
    return put_server(fleet, Server(event.server, 0, phase=Phase.ORDERED, last_position=record.position))


def ended(fleet: Fleet, record: e.Record, _: e.RegrowthEnded) -> Fleet:
    if fleet.regrowth is None or not fleet.regrowth.is_planted:
        raise IllegalTransition(f"the regrowth that ends at position {record.position} never began")
    return replace(fleet, regrowth=None)


def planted(fleet: Fleet, record: e.Record, event: e.GenomePlanted) -> Fleet:
    """The fleet that wants what the genome says. Ids that the lost journal may have given out are left out, and count
    as never ordered: cells that run under them are unknown, until they are adopted."""
    if fleet.regrowth is None or fleet.regrowth.is_planted:
        raise IllegalTransition(f"a genome at position {record.position}, but nobody waits for one")
    genome, at, position = event.genome, record.at, record.position
    fleet = unknown.with_least_generation(fleet, reserved(genome.least_generation))
    fleet = replace(fleet, regrowth=Regrowth(at, is_planted=True))
    for name, generation in genome.unused.items():
        unused = max(generation, fleet.generations.get(name) or 1)
        fleet = unknown.left_out(fleet, name, unused)
        fleet = replace(fleet, generations=fleet.generations.insert(name, unused))
    for group in genome.groups:
        fleet = _with_group(fleet, group, position)
    for server in genome.servers:
        fleet = _with_server(fleet, server, at, position)
    return fleet


def _with_group(fleet: Fleet, planted_group: GenomeGroup, position: int) -> Fleet:
    group = planted_group.group
    current = planted_group.revisions[-1]
    unused = max(planted_group.unused, fleet.generations.get(group.name) or 1)
    state = GroupState(
        group=group,
        digest=current.digest,
        revision=current.number,
        revisions=planted_group.revisions,
        first_generation=unused,
        longest_lease_seconds=group.lease_seconds,
        last_position=position,
    )
    fleet = unknown.left_out(fleet, group.name, unused)
    return replace(
        fleet,
        groups=fleet.groups.insert(group.name, state),
        generations=fleet.generations.discard(group.name),
    )


def _with_server(fleet: Fleet, one: GenomeServer, at: float, position: int) -> Fleet:
    """Its agent may have attached before; then it knows the facts better than the genome."""
    known = fleet.servers.get(one.id)
    is_here = known is not None and known.phase is Phase.READY
    server = Server(
        id=one.id,
        generation=max(one.generation, known.generation if known else 0),
        phase=one.phase,
        joined_at=at,
        pool=one.pool,
        last_position=position,
        **server_facts(known if known is not None and is_here else one),
    )
    if one.phase is not Phase.READY:
        server = replace(server, condemned_at=at, condemned_by=Rule.OPERATOR, condemned_health=Health.HEALTHY)
    fleet = put_server(fleet, server)
    return _with_pool_cell(fleet, one, at, position) if one.pool else fleet


def _with_pool_cell(fleet: Fleet, one: GenomeServer, at: float, position: int) -> Fleet:
    """A pool's server is a cell of it."""
    parsed, state = parse_cell_id(one.id), fleet.groups.get(one.pool)
    if parsed is None or state is None or state.group.kind is not GroupKind.POOL:
        return fleet
    cell = Cell(
        id=one.id,
        group=parsed.group,
        slot=parsed.slot,
        generation=parsed.generation,
        phase=Phase.READY,
        digest=one.digest,
        revision=one.revision,
        server="",
        ordered_at=at,
        ready_at=at,
        kind=CellKind.SERVER,
        runtime_id=one.ref,
        last_position=position,
    )
    before = state.slots.get(parsed.slot) or Slot(next_generation=state.first_generation)
    fleet = put_slot(fleet, state, parsed.slot, replace(before, cells=(*before.cells, cell)))
    return unknown.owned(fleet, one.id)
