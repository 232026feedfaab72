"""Death certificates: the life and death of a cell or server, from the fleet and the journal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from galactica.scheduler.core.model import events as e
from galactica.scheduler.core.model.fleet import Cell, CellKind, Phase, Server, parse_cell_id
from galactica.scheduler.core.model.keys import SlotKey
from galactica.scheduler.core.model.verdict import Evidence
from galactica.scheduler.core.ports import View
from galactica.scheduler.views import cells as cell_views
from galactica.scheduler.views import servers as server_views
from galactica.scheduler.views import status as status_views
from galactica.scheduler.wire.cell import autopsy_to_proto
from galactica.v1 import operator_pb2


def certificate(
    view: View, cell_id: str, records: Sequence[e.Record], successor: Sequence[e.Record]
) -> operator_pb2.GetCertificateResponse | None:
    """The death certificate of a cell, or the state of a living cell. None if no such cell was ever ordered.

    ``records``: the cell's records. ``successor``: the records of the slot's next generation. Both oldest first."""
    cell = cell_views.find_cell(view, cell_id) or _from_records(records)
    if cell is None:
        return None
    if not cell.replaced_by:
        cell = replace(cell, replaced_by=_replaced_by(cell_id, successor))
    if not cell.is_condemned:
        return _of_living(view, cell)
    return _of_condemned(view, cell, records)


def _of_living(view: View, cell: Cell) -> operator_pb2.GetCertificateResponse:
    """A healthy server of a pool has evidence too: its beats, and what its neighbours report."""
    verdict = cell_views.verdict_of(view, cell)
    server = view.fleet.servers.get(cell.id) if cell.kind is CellKind.SERVER else None
    evidence = (
        server_views.server_row(view, server).evidence
        if server is not None
        else map(server_views.evidence_row, verdict.evidence)
    )
    return operator_pb2.GetCertificateResponse(
        cell=cell_views.cell_row(view, cell), verdict=verdict.health.value, evidence=evidence
    )


def _of_condemned(view: View, cell: Cell, records: Sequence[e.Record]) -> operator_pb2.GetCertificateResponse:
    answer = operator_pb2.GetCertificateResponse(
        cell=cell_views.cell_row(view, cell),
        verdict=str(cell.condemned_health or ""),
        rule=cell.condemned_by,
        condemned_at=cell.condemned_at,
        replaces=cell.replaces,
        replaced_by=cell.replaced_by,
        held=status_views.holds(view, SlotKey(cell.group, cell.slot)),
    )
    for record in records:
        match record.event:
            case e.CellCondemned() as condemned:
                answer.evidence.extend(map(server_views.evidence_row, condemned.evidence))
                answer.budget = condemned.budget
                answer.cause = record.cause
                answer.cell.reason = condemned.reason
                if condemned.autopsy is not None:
                    answer.autopsy.CopyFrom(autopsy_to_proto(condemned.autopsy))
            case e.CellDraining(reason=reason) if reason:
                answer.evidence.append(server_views.evidence_row(Evidence("scheduler", reason, record.at)))
            case e.CellDecommissioned(autopsy=autopsy) if autopsy is not None:
                if not answer.HasField("autopsy"):
                    answer.autopsy.CopyFrom(autopsy_to_proto(autopsy))
    return answer


def server_certificate(
    view: View, server: Server, records: Sequence[e.Record]
) -> operator_pb2.GetCertificateResponse:
    """The same for a server that joined on its own and is not a cell. ``records``: the newest records of the journal.
    If the server was condemned before these, the certificate has no evidence."""
    cell = server_views.server_as_cell(view, server)
    if server.condemned_at is None:
        row = server_views.server_row(view, server)
        return operator_pb2.GetCertificateResponse(cell=cell, verdict=row.verdict, evidence=row.evidence)
    answer = operator_pb2.GetCertificateResponse(
        cell=cell,
        verdict=str(server.condemned_health or ""),
        rule=server.condemned_by,
        condemned_at=server.condemned_at,
    )
    for record in records:
        match record.event:
            case e.ServerCondemned(server=name) as condemned if name == server.id:
                del answer.evidence[:]
                answer.evidence.extend(map(server_views.evidence_row, condemned.evidence))
                answer.cause = record.cause
                answer.cell.reason = condemned.reason
    return answer


def _replaced_by(cell_id: str, successor: Sequence[e.Record]) -> str:
    for record in successor:
        if isinstance(record.event, e.CellOrdered) and record.event.replaces == cell_id:
            return record.event.cell
    return ""


def _from_records(records: Sequence[e.Record]) -> Cell | None:
    """A cell that the fleet has forgotten, rebuilt from its records."""
    cell: Cell | None = None
    for record in records:
        match record.event:
            case e.CellOrdered() as ordered:
                cell = _ordered(ordered, record.at)
            case e.CellReady() as ready if cell:
                cell = replace(
                    cell, ready_at=record.at, endpoints=ready.endpoints, runtime_id=ready.runtime_id
                )
            case e.CellCondemned() as condemned if cell:
                cell = replace(
                    cell,
                    condemned_at=record.at,
                    condemned_by=condemned.rule,
                    condemned_health=condemned.health,
                )
            case e.CellDecommissioned() if cell:
                cell = replace(cell, phase=Phase.DECOMMISSIONED, decommissioned_at=record.at)
    return cell if cell is not None and cell.phase is Phase.DECOMMISSIONED else None


def _ordered(ordered: e.CellOrdered, at: float) -> Cell | None:
    parsed = parse_cell_id(ordered.cell)
    if parsed is None:
        return None
    return Cell(
        id=ordered.cell,
        group=parsed.group,
        slot=parsed.slot,
        generation=parsed.generation,
        phase=Phase.ORDERED,
        digest=ordered.digest,
        revision=ordered.revision,
        server=ordered.server,
        ordered_at=at,
        resources=ordered.resources,
        replaces=ordered.replaces,
    )
