"""When to tell the scheduler what: the part of the agent's pure half that fills reports and beats.

A change goes out at once; those that follow within ``WINDOW_SECONDS`` share the next report. Vitals ride along
when they are due or markedly different. When nothing was sent for a beat, an empty report is the beat.
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
"""Change of a fraction (cpu, memory, disk) that is told before the vitals are due."""
MARKED_PRESSURE = 20.0
"""The same for pressure, in percentage points."""
MARKED_CLOCK_MS = 1_000.0
MARKED_KERNEL_ERRORS = 5
ECHO_SHARE = 0.5
"""Silence of this share of the lease makes the next report ask for an echo, where nothing depends on it."""


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
    """The session with the news taken in, and the report that is due, if one is. ``echo_share``: silence of this share
    of the lease makes it ask for an echo."""
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
            TestimonyReport(one.server_id, one.answer, now - one.since)
            for one in (testimonies if session.owes_everything else session.untold).values()
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
    """Put on the next report what is new of the neighbours, and nothing of those that are watched no more."""
    untold = {
        server_id: testimony
        for server_id, testimony in testimonies.items()
        if server_id in session.untold or before.get(server_id) != testimony
    }
    return replace(session, untold=untold)


def _due(session: Session, *, is_marked: bool) -> float:
    """The first change goes out at once; those right behind a report share the next one."""
    if session.unsent or session.untold or is_marked:
        return session.sent_at + WINDOW_SECONDS if session.sent else 0.0
    return session.sent_at + session.beat_seconds


def _contents(session: Session, cells: Mapping[str, Cell]) -> tuple[CellReport, ...]:
    """What to say. GONE is said in a complete report too: it is the last mention of that cell."""
    said = {
        cell_id: words
        for cell_id, words in session.unsent.items()
        if words is not None and cell_id not in cells
    }
    ids = cells if session.owes_everything else [one for one in session.unsent if one in cells]
    return (*(report(cells[one]) for one in ids), *said.values())


def _differs_markedly(before: cell_pb2.Vitals | None, after: cell_pb2.Vitals | None) -> bool:
    if after is None:
        return False
    if before is None:  # a server is ready only when its vitals are known to be good
        return True
    if before.HasField("engine_latency_ms") and (before.engine_latency_ms < 0) != (
        after.engine_latency_ms < 0
    ):
        return True
    if before.disk_error != after.disk_error:
        return True
    if abs(after.clock_offset_ms - before.clock_offset_ms) >= MARKED_CLOCK_MS:
        return True
    if abs(after.kernel_errors - before.kernel_errors) >= MARKED_KERNEL_ERRORS:
        return True
    fractions = ("cpu_fraction", "memory_fraction", "disk_fraction")
    pressures = ("pressure_cpu", "pressure_memory", "pressure_io")
    return any(
        abs(getattr(after, one) - getattr(before, one)) >= MARKED_FRACTION for one in fractions
    ) or any(abs(getattr(after, one) - getattr(before, one)) >= MARKED_PRESSURE for one in pressures)
