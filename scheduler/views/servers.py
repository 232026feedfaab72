"""Servers and providers as rows of the operators' contract. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from galactica.scheduler.core.model.fleet import Cell, CellKind, Phase, Server, parse_cell_id
from galactica.scheduler.core.model.rules import Rule
from galactica.scheduler.core.model.spec import GroupKind, Resources
from galactica.scheduler.core.model.verdict import Evidence, Verdict
from galactica.scheduler.core.ports import View
from galactica.scheduler.core.sight.observations import ProviderState
from galactica.scheduler.core.verdicts.evidence import witnesses_of
from galactica.scheduler.core.verdicts.servers import server_verdict
from galactica.scheduler.views.cells import verdict_of, verdict_words
from galactica.scheduler.views.notes import deletes_under_way, lease_of, maintenance_words, notes_of
from galactica.scheduler.wire.cell import vitals_to_proto
from galactica.scheduler.wire.versions import is_behind
from galactica.v1 import cell_pb2, operator_pb2


def servers(view: View) -> Iterator[operator_pb2.Server]:
    """Rows by id: the enrolled servers, and the servers of pools that are ordered but not enrolled yet."""
    rows = {server.id: server_row(view, server) for server in view.fleet.servers.values()}
    for state in view.fleet.groups.values():
        if state.group.kind is GroupKind.POOL:
            cells = (cell for slot in state.slots.values() for cell in slot.cells)
            rows.update((cell.id, _ordered_row(view, cell)) for cell in cells if cell.id not in rows)
    return (rows[name] for name in sorted(rows, key=_order))


def _order(server_id: str) -> tuple[str, int, int]:
    """``rack/10.1`` comes after ``rack/2.1``."""
    parsed = parse_cell_id(server_id)
    return (parsed.group, parsed.slot, parsed.generation) if parsed else (server_id, -1, 0)


def server_row(view: View, server: Server) -> operator_pb2.Server:
    seen = view.sight.servers.get(server.id)
    cell = view.fleet.cell(server.id) if server.pool else None
    verdict = (
        verdict_of(view, cell)
        if cell
        else server_verdict(view.fleet, server, view.sight, view.now, view.policy)
    )
    row = operator_pb2.Server(
        id=server.id,
        phase=server.phase.value,
        verdict=verdict.health.value,
        reason=verdict.reason,
        labels=server.labels,
        runtimes=[kind.value for kind in server.runtimes],
        capacity=_capacity(server.capacity, server.disk_bytes),
        used=_capacity(server.used, 0),
        cells=sorted(server.cells),
        agent_version=server.agent_version,
        last_beat_at=seen.heard_at if seen else None,
        vitals=vitals_to_proto(seen.vitals) if seen and seen.vitals else None,
        evidence=map(evidence_row, verdict.evidence or _signs_of_life(view, server)),
        neighbours=_neighbours(view, server.id),
        notes=notes_of(view, server.id),
    )
    if seen is not None:
        row.watch_address = seen.place.address
        row.wire_version = seen.wire_version if seen.is_open else 0
        row.is_behind = is_behind(row.wire_version)
    lease = lease_of(view, server.id)
    if lease is not None:
        row.maintenance_until = lease.until
    if cell is not None:
        _add_cell(view, row, cell, verdict)
    if lease is not None and verdict.rule == Rule.MAINTENANCE:
        row.reason = maintenance_words(lease)
    return row


def _ordered_row(view: View, cell: Cell) -> operator_pb2.Server:
    verdict = verdict_of(view, cell)
    row = operator_pb2.Server(id=cell.id, evidence=map(evidence_row, verdict.evidence))
    state = view.fleet.groups[cell.group]
    spec = state.spec_for(cell)
    row.labels.update(spec.server.labels if spec.server else {})
    _add_cell(view, row, cell, verdict)
    return row


def _add_cell(view: View, row: operator_pb2.Server, cell: Cell, verdict: Verdict) -> None:
    """Fill in the server's facts as a cell of its pool. Its phase as a cell says more than its phase as a server."""
    row.phase = cell.phase.value
    row.verdict, row.reason = verdict_words(cell, verdict)
    row.pool, row.slot, row.generation = cell.group, cell.slot, cell.generation
    row.provider_ref = cell.runtime_id or _ref_of(view, cell)


def _ref_of(view: View, cell: Cell) -> str:
    entries = (provider.servers.get(cell.id) for provider in view.sight.providers.values())
    return next((entry.ref for entry in entries if entry is not None), "")


def evidence_row(fact: Evidence) -> operator_pb2.Evidence:
    return operator_pb2.Evidence(source=fact.source, says=fact.says, at=fact.at)


def _signs_of_life(view: View, server: Server) -> tuple[Evidence, ...]:
    """The evidence for a healthy verdict, and the newest facts about a condemned server."""
    seen = view.sight.servers.get(server.id)
    if seen is None or server.phase is Phase.ORDERED:
        return ()
    tempo = view.policy.tempo(len(view.fleet.servers))
    witnesses = witnesses_of(server, view.sight, view.now, tempo)
    says = "last heard" if tempo.has_missed(seen.heard_at, view.now) else "it sends heartbeats"
    return (Evidence(f"agent {server.id}", says, seen.heard_at), *witnesses.facts)


def _neighbours(view: View, server_id: str) -> Iterator[operator_pb2.NeighbourAnswer]:
    """The answers of neighbours with an open session. A neighbour without one no longer counts."""
    about = view.sight.about.get(server_id)
    for watcher, testimony in sorted(about.items()) if about else ():
        seen = view.sight.servers.get(watcher)
        if seen is None or not seen.is_open:
            continue
        yield operator_pb2.NeighbourAnswer(server_id=watcher, answer=testimony.answer.value)


def _capacity(resources: Resources, disk_bytes: int) -> cell_pb2.Capacity:
    return cell_pb2.Capacity(
        cpu_millis=resources.cpu_millis, memory_bytes=resources.memory_bytes, disk_bytes=disk_bytes
    )


# --- providers ----------------------------------------------------------------------------------------------------


def providers(view: View) -> list[operator_pb2.Provider]:
    """The providers that have answered, and those that a pool names."""
    names = set(view.sight.providers)
    for state in view.fleet.groups.values():
        if state.group.spec.server is not None:
            names.add(state.group.spec.server.provider)
    return [_provider_row(view, name) for name in sorted(names)]


def _provider_row(view: View, name: str) -> operator_pb2.Provider:
    provider = view.sight.providers.get(name)
    if provider is None:
        return operator_pb2.Provider(name=name, trouble="no answer since this scheduler started")
    gone = {cell for cell, server in provider.servers.items() if server.state is ProviderState.GONE}
    return operator_pb2.Provider(
        name=name,
        servers=len(provider.servers) - len(gone),
        deleting=len(deletes_under_way(provider)),
        trouble=provider.trouble,
        listed_at=provider.listed_at or None,
    )


# --- the death certificate of a server that is not a cell ---------------------------------------------------------


def server_as_cell(view: View, server: Server) -> operator_pb2.Cell:
    """A server that joined on its own, as a row for cells."""
    row = server_row(view, server)
    return operator_pb2.Cell(
        id=server.id,
        generation=server.generation,
        kind=CellKind.SERVER.value,
        phase=row.phase,
        verdict=row.verdict,
        reason=row.reason,
        ready_at=server.joined_at or None,
        condemned_at=server.condemned_at,
    )
