"""When to report what to the scheduler: the part of the agent's pure half that composes reports and beats.

A change is reported at once; changes that follow within ``WINDOW_SECONDS`` share the next report. A report carries
vitals when they are due or have changed markedly. If nothing was sent for a beat, an empty report is the beat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from galactica.agent.core.instructions import SendReport
from galactica.agent.core.model import CellReport, CellState, Testimony, TestimonyReport

if TYPE_CHECKING:
    from galactica.v1 import cell_pb2
from galactica.agent.core.model import Cell, Session

WINDOW_SECONDS = 0.005
VITALS_SECONDS = 10.0
MARKED_FRACTION = 0.15
"""Change of a fraction (cpu, memory, disk) that is reported before the vitals are due."""
MARKED_PRESSURE = 20.0
"""Such a change of pressure, in percentage points."""
MARKED_CLOCK_MS = 1_000.0
MARKED_KERNEL_ERRORS = 5
ECHO_SHARE = 0.5
"""Without exclusive cells: after a silence of this share of the lease the next report asks for an echo."""


def report(cell: Cell) -> CellReport:
    return CellReport(
        cell_id=cell.id,
        digest=cell.digest,
        state=cell.state,
        runtime_id=cell.runtime_id,
        endpoints=cell.endpoints,
        probe=cell.probe,
        autopsy=cell.autopsy,
        progress=cell.progress,
        touched=cell.touched,
        doubt=cell.doubt,
    )


def gone(cell_id: str, digest: str) -> CellReport:
    return CellReport(cell_id=cell_id, digest=digest, state=CellState.GONE)


def next_look(session: Session) -> float:
    """When a report or beat is due, or the scheduler's silence has lasted too long."""
    due = session.sent_at + (WINDOW_SECONDS if session.unsent or session.untold else session.beat_seconds)
    return min(due, session.heard_at + session.lease_seconds)


def flush(
    session: Session,
    news: Mapping[str, CellReport | None],
    cells: Mapping[str, Cell],
    vitals: cell_pb2.Vitals | None,
    testimonies: Mapping[str, Testimony],
    now: float,
    *,
    is_leaving: bool = False,
    echo_share: float = ECHO_SHARE,
) -> tuple[Session, SendReport | None]:
    """Add the news to the session. Returns the session, and a report if one is due. ``echo_share``: the report asks for
    an echo if the scheduler was silent for this share of the lease."""
    if news:
        session = replace(session, unsent={**session.unsent, **news} if session.unsent else news)
    has_vitals = vitals is not None and vitals is not session.vitals
    is_marked = has_vitals and _differs_markedly(session.vitals, vitals)
    must_speak = session.owes_everything or (is_leaving and not session.has_said_goodbye)
    if not must_speak and now < _due(session, is_marked=is_marked):
        return session, None
    is_due = is_marked or now - session.vitals_at >= VITALS_SECONDS
    with_vitals = vitals is not None if session.owes_everything else has_vitals and is_due
    message = SendReport(
        link=session.link,
        session=session.id,
        sequence=session.sent + 1,
        cells=_contents(session, cells),
        vitals=vitals if with_vitals else None,
        complete=session.owes_everything,
        wants_echo=now - session.heard_at >= session.lease_seconds * echo_share,
        testimonies=tuple(
            TestimonyReport(said.server_id, said.answer, now - said.since, said.after_refusal)
            for said in (testimonies if session.owes_everything else session.untold).values()
        ),
        leaving=is_leaving,
        beat_at=now,
    )
    session = replace(
        session,
        sent=message.sequence,
        sent_at=now,
        unsent={},
        untold={},
        owes_everything=False,
        has_said_goodbye=is_leaving,
        vitals=vitals if with_vitals else session.vitals,
        vitals_at=now if with_vitals else session.vitals_at,
    )
    return session, message


def testified(
    session: Session, before: Mapping[str, Testimony], testimonies: Mapping[str, Testimony]
) -> Session:
    """Add new and changed testimonies to the next report, and remove those about servers that are no longer watched."""
    untold = {
        server_id: testimony
        for server_id, testimony in testimonies.items()
        if server_id in session.untold or before.get(server_id) != testimony
    }
    return replace(session, untold=untold)


def _due(session: Session, *, is_marked: bool) -> float:
    """The first change is due at once; changes right after a report share the next one."""
    if session.unsent or session.untold or is_marked:
        return session.sent_at + WINDOW_SECONDS if session.sent else 0.0
    return session.sent_at + session.beat_seconds


def _contents(session: Session, cells: Mapping[str, Cell]) -> tuple[CellReport, ...]:
    """The report's cells. A complete report contains removed cells (GONE) too: it is their last mention."""
    prepared = {
        cell_id: cell_report
        for cell_id, cell_report in session.unsent.items()
        if cell_report is not None and cell_id not in cells
    }
    ids = cells if session.owes_everything else [cell_id for cell_id in session.unsent if cell_id in cells]
    return (*(report(cells[cell_id]) for cell_id in ids), *prepared.values())


def _differs_markedly(before: cell_pb2.Vitals | None, after: cell_pb2.Vitals | None) -> bool:
    if after is None:
        return False
    if before is None:  # the scheduler needs vitals before the server can be READY
        return True
    if before.HasField("engine_latency_ms") and (before.engine_latency_ms < 0) != (
        after.engine_latency_ms < 0
    ):
        return True
    if before.disk_error != after.disk_error or before.foreign_cells != after.foreign_cells:
        return True
    if before.agent_lacks != after.agent_lacks:
        return True
    if abs(after.clock_offset_ms - before.clock_offset_ms) >= MARKED_CLOCK_MS:
        return True
    if abs(after.kernel_errors - before.kernel_errors) >= MARKED_KERNEL_ERRORS:
        return True
    fractions = ("cpu_fraction", "memory_fraction", "disk_fraction")
    pressures = ("pressure_cpu", "pressure_memory", "pressure_io")
    return any(
        abs(getattr(after, name) - getattr(before, name)) >= MARKED_FRACTION for name in fractions
    ) or any(abs(getattr(after, name) - getattr(before, name)) >= MARKED_PRESSURE for name in pressures)
