"""What each fact about a server as a place for cells makes of the fleet. Pure; ``transitions`` has the table."""

from __future__ import annotations

from msgspec.structs import replace

from galactica.scheduler.core import unknown
from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.events import IllegalTransition
from galactica.scheduler.core.model.fleet import (
    SILENCES_KEPT,
    CellKind,
    Fleet,
    Maintenance,
    Phase,
    Server,
    Silence,
    server_facts,
)
from galactica.scheduler.core.model.rules import SILENCE_RULES
from galactica.scheduler.core.model.verdict import Health
from galactica.scheduler.core.tallies import put_server


def name_of(record: e.Record) -> str:
    """The record, for an error."""
    return f"{type(record.event).__name__} at position {record.position}"


def _server(fleet: Fleet, server_id: str, record: e.Record, *phases: Phase) -> Server:
    server = fleet.servers.get(server_id)
    if server is None:
        raise IllegalTransition(f"{name_of(record)}: there is no server {server_id}")
    if server.phase not in phases:
        raise IllegalTransition(f"{name_of(record)} cannot follow: server {server_id} is {server.phase}")
    return server


def server_enrolled(fleet: Fleet, record: e.Record, event: e.ServerEnrolled) -> Fleet:
    fleet = unknown.enrolled(fleet, event.server)
    token = fleet.tokens.get(event.token)
    if token is not None:
        tokens = fleet.tokens.insert(token.id, replace(token, uses_left=token.uses_left - 1))
        if token.uses_left <= 1:
            tokens = tokens.discard(token.id)
        fleet = replace(fleet, tokens=tokens)
    known = fleet.servers.get(event.server)
    if known is not None and known.phase in (Phase.READY, Phase.CONDEMNED):
        return fleet
    generation = known.generation if known else 0
    cell = fleet.cell(event.server)
    pool = cell.group if cell is not None and cell.kind is CellKind.SERVER else ""
    enrolled = Server(event.server, generation, phase=Phase.ORDERED, pool=pool, last_position=record.position)
    return put_server(fleet, enrolled)


def server_joined(fleet: Fleet, record: e.Record, event: e.ServerJoined) -> Fleet:
    before = _server(fleet, event.server, record, Phase.ORDERED, Phase.DECOMMISSIONED)
    if event.generation != before.generation + 1:
        raise IllegalTransition(
            f"{name_of(record)}: server {event.server} is of generation {before.generation}"
        )
    joined = Server(
        id=event.server,
        generation=event.generation,
        phase=Phase.READY,
        joined_at=record.at,
        pool=before.pool,
        last_position=record.position,
        machine=event.machine,
        **server_facts(event),
    )
    return put_server(fleet, joined)


def machine_recognised(fleet: Fleet, record: e.Record, event: e.MachineRecognised) -> Fleet:
    before = _server(fleet, event.server, record, Phase.READY, Phase.CONDEMNED)
    return put_server(fleet, replace(before, machine=event.machine, last_position=record.position))


def server_changed(fleet: Fleet, record: e.Record, event: e.ServerChanged) -> Fleet:
    before = _server(fleet, event.server, record, Phase.READY)
    changed = replace(before, last_position=record.position, **server_facts(event))
    return put_server(fleet, changed)


def server_condemned(fleet: Fleet, record: e.Record, event: e.ServerCondemned) -> Fleet:
    """From READY; and once more where a server that is drained dies before it is empty."""
    before = _server(fleet, event.server, record, Phase.READY, Phase.CONDEMNED)
    if before.phase is Phase.CONDEMNED and (before.is_lost or event.health is not Health.DEAD):
        raise IllegalTransition(f"{name_of(record)}: server {event.server} is condemned already")
    # Whoever was drained by an operator stays so; else what it died of is what counts, not why it was to go before.
    condemned = replace(
        before,
        phase=Phase.CONDEMNED,
        condemned_at=before.condemned_at or record.at,
        condemned_by=before.condemned_by if before.is_drained else event.rule,
        condemned_health=event.health,
        last_position=record.position,
        maintenance=None if event.health is Health.DEAD else before.maintenance,
    )
    if event.rule in SILENCE_RULES:
        fleet = _remember_silence(fleet, Silence(event.server, record.at), before.pool)
    return put_server(fleet, condemned)


def _remember_silence(fleet: Fleet, silence: Silence, pool: str) -> Fleet:
    before = fleet.silences.get(pool) or ()
    return replace(fleet, silences=fleet.silences.insert(pool, (*before, silence)[-SILENCES_KEPT:]))


def server_decommissioned(fleet: Fleet, record: e.Record, event: e.ServerDecommissioned) -> Fleet:
    before = _server(fleet, event.server, record, Phase.CONDEMNED)
    if len(before.cells):
        raise IllegalTransition(
            f"{name_of(record)}: server {event.server} still has {len(before.cells)} cells"
        )
    if before.is_lost:  # one that was drained lives on, with what this journal never ordered there
        fleet = unknown.lost_with(fleet, event.server)
    return put_server(
        fleet, replace(before, phase=Phase.DECOMMISSIONED, last_position=record.position, maintenance=None)
    )


def maintenance_began(fleet: Fleet, record: e.Record, event: e.MaintenanceBegan) -> Fleet:
    before = _server(fleet, event.server, record, Phase.READY, Phase.CONDEMNED)
    lease = Maintenance(event.session, record.at, event.until)
    return put_server(fleet, replace(before, maintenance=lease))


def maintenance_ended(fleet: Fleet, record: e.Record, event: e.MaintenanceEnded) -> Fleet:
    before = _server(fleet, event.server, record, Phase.READY, Phase.CONDEMNED)
    return put_server(fleet, replace(before, maintenance=None))
