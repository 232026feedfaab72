"""What becomes of a cell: ordered, started, watched, probed, decommissioned, gone. Part of the agent's pure half."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from galactica.agent.core import reporting
from galactica.agent.core.events import (
    Compared,
    ProbeFinished,
    Progressed,
    Relisted,
    StartDeferred,
    Started,
    StopFailed,
)
from galactica.agent.core.instructions import AbandonStart, StartCell, StartProbing, StopCell, StopProbing
from galactica.agent.core.model import Cell, CellState, Death, ProbeStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from galactica.agent.core.draft import Draft
    from galactica.agent.core.model import Found, State
    from galactica.v1 import cell_pb2, link_pb2

CELLS_LIMIT = 1_000
"""How many cells one agent carries; an order above that is answered with FAILED."""
START_PATIENCE_SECONDS = 30.0
"""How long a start is tried while the engine does not answer."""
RETRY_FIRST_SECONDS = 0.5
RETRY_LIMIT_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
"""A cell's progress is told no more often than this."""
TEXT_CHARACTERS = 300
ORPHAN_STOP = ("SIGTERM", 10.0)
"""The stop of a cell whose order names none."""


# The two verbs.


def ordered(draft: Draft, order: link_pb2.Order) -> None:
    cell_id = order.cell_id
    if cell_id in draft.cells:
        draft.tell(cell_id)
    elif cell_id in draft.gone:
        draft.tell(cell_id, reporting.gone(cell_id, order.digest))
    elif draft.state.is_closing:
        return
    elif len(draft.cells) >= CELLS_LIMIT:
        death = Death(f"this server carries {CELLS_LIMIT} cells already, the most an agent takes")
        draft.tell(cell_id, reporting.report(replace(_cell_of(order), state=CellState.FAILED, autopsy=death)))
    else:
        draft.put(replace(_cell_of(order), start_in_flight=True, tried_since=draft.now))
        draft.emit(StartCell(order))


def decommissioned(draft: Draft, cell_id: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None:
        draft.tell(cell_id, reporting.gone(cell_id, ""))
    elif cell.state is CellState.STOPPING:
        draft.put(replace(cell, is_fenced=False))
    else:
        stop(draft, replace(cell, is_fenced=False))


def stop(draft: Draft, cell: Cell) -> None:
    if cell.state is CellState.RUNNING and cell.is_probed:
        draft.emit(StopProbing(cell.id))
    cell = replace(cell, state=CellState.STOPPING, progress="", tries=0)
    draft.put(cell)
    draft.retry(cell.id, None)
    # Two hands on one cell would race in the runtime: a start ends first, then the cell is stopped.
    if not cell.start_in_flight:
        _emit_stop(draft, cell)
    elif cell.is_exclusive:  # its start may take long, and its end is counted on
        draft.emit(AbandonStart(cell.id))


def stop_of(order: link_pb2.Order) -> tuple[str, float]:
    """Signal and grace in seconds."""
    named = order.spec.stop
    return (named.signal, named.grace_ms / 1_000) if named.signal else ORPHAN_STOP


def _emit_stop(draft: Draft, cell: Cell) -> None:
    signal, grace_seconds = stop_of(cell.order)
    if cell.is_fenced:
        # Its grace counts from the end of the lease: a host that slept meanwhile has used it up.
        grace_seconds = max(0.0, min(grace_seconds, draft.state.fence_at + grace_seconds - draft.now))
        signal = signal if grace_seconds else "SIGKILL"
    draft.emit(StopCell(cell.id, cell.kind, signal, grace_seconds))


# What the runtime says.


def _cell_of(order: link_pb2.Order) -> Cell:
    spec = order.spec
    return Cell(
        order=order,
        id=order.cell_id,
        digest=order.digest,
        kind=spec.runtime,
        sick_after=max(1, spec.health.sick_after) if spec.health.WhichOneof("probe") else 0,
    )


def progressed(draft: Draft, event: Progressed) -> None:
    cell = draft.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.STARTING:
        return
    if draft.now - cell.progress_at >= PROGRESS_SECONDS:
        draft.put(replace(cell, progress=event.text[:TEXT_CHARACTERS], progress_at=draft.now))


def started(draft: Draft, event: Started) -> None:
    cell = draft.cells.get(event.cell_id)
    if cell is None or not cell.start_in_flight:
        return
    cell = replace(
        cell,
        start_in_flight=False,
        runtime_id=event.runtime_id,
        endpoints=event.endpoints,
        progress="",
        tries=0,
    )
    if cell.state is CellState.STARTING:
        _run(draft, cell)
        return
    draft.put(cell)
    if cell.state is CellState.STOPPING:
        _emit_stop(draft, cell)


def _run(draft: Draft, cell: Cell) -> None:
    cell = replace(cell, state=CellState.RUNNING, running_since=draft.now)
    draft.put(cell)
    if cell.is_probed:
        draft.emit(StartProbing(cell.order, cell.endpoints))


def start_failed(draft: Draft, cell_id: str, reason: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None or not cell.start_in_flight:
        return
    cell = replace(cell, start_in_flight=False, progress="", tries=0)
    if cell.state is CellState.STARTING:
        cell = replace(cell, state=CellState.FAILED, autopsy=Death(reason))
    draft.put(cell)
    if cell.state is CellState.STOPPING:
        _emit_stop(draft, cell)


def start_deferred(draft: Draft, event: StartDeferred) -> None:
    cell = draft.cells.get(event.cell_id)
    if cell is None or not cell.start_in_flight:
        return
    waited = draft.now - cell.tried_since
    if cell.state is not CellState.STARTING or waited >= START_PATIENCE_SECONDS:
        start_failed(draft, cell.id, f"not started within {waited:.0f} s: {event.reason}")
        return
    # The start is not in flight while it waits, so that a decommission need not wait for it.
    progress = f"will be tried again: {event.reason}"[:TEXT_CHARACTERS]
    cell = replace(cell, start_in_flight=False, tries=cell.tries + 1, progress=progress)
    draft.put(cell)
    draft.retry(cell.id, draft.now + _retry_seconds(cell.tries))


def stop_failed(draft: Draft, event: StopFailed) -> None:
    """A cell that must go is tried for as long as it takes, with bounded pauses."""
    cell = draft.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.STOPPING:
        return
    progress = f"will be tried again: {event.reason}"[:TEXT_CHARACTERS]
    cell = replace(cell, tries=cell.tries + 1, progress=progress)
    draft.put(cell)
    draft.retry(cell.id, draft.now + _retry_seconds(cell.tries))


def _retry_seconds(tries: int) -> float:
    return min(RETRY_LIMIT_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(tries - 1, 10))


def try_again(draft: Draft, cell: Cell) -> None:
    if cell.state is CellState.STARTING:
        draft.put(replace(cell, start_in_flight=True))
        draft.emit(StartCell(cell.order))
    elif cell.state is CellState.STOPPING:
        _emit_stop(draft, cell)


def stopped(draft: Draft, cell_id: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None or cell.state is not CellState.STOPPING:
        return
    if cell.is_fenced:
        draft.retry(cell.id, None)
        draft.put(replace(cell, state=CellState.EXITED, progress="", tries=0))
    else:
        draft.bury(cell)


def died(draft: Draft, cell_id: str, autopsy: cell_pb2.Autopsy | Death) -> None:
    """A death may be seen before the start that it followed returns."""
    cell = draft.cells.get(cell_id)
    if cell is None or cell.state not in {CellState.STARTING, CellState.RUNNING}:
        return
    if cell.state is CellState.RUNNING and cell.is_probed:
        draft.emit(StopProbing(cell.id))
    draft.put(replace(cell, state=CellState.EXITED, autopsy=autopsy, progress=""))


def relisted(draft: Draft, event: Relisted) -> None:
    found = {one.order.cell_id: one for one in event.found}
    for cell_id, one in found.items():
        cell = draft.cells.get(cell_id)
        if cell is None and draft.gone.get(cell_id, -math.inf) < event.asked_at:
            _adopt(draft, one)
        elif cell is not None and one.running is None and _ran_at(cell, event.asked_at):
            died(draft, cell_id, one.autopsy or Death("found dead", draft.now - cell.running_since))
    vanished = [cell for cell in _of_kind(draft.cells.values(), event.kind) if cell.id not in found]
    for cell in vanished:
        if _ran_at(cell, event.asked_at):
            reason = "it vanished: something other than the agent removed it"
            died(draft, cell.id, Death(reason, draft.now - cell.running_since))


def _of_kind(cells: Iterable[Cell], kind: int) -> tuple[Cell, ...]:
    return tuple(cell for cell in cells if cell.kind == kind)


def _ran_at(cell: Cell, asked_at: float) -> bool:
    return cell.state is CellState.RUNNING and cell.running_since < asked_at


def _adopt(draft: Draft, found: Found) -> None:
    cell = _cell_of(found.order)
    if found.running is not None:
        running = found.running
        _run(draft, replace(cell, runtime_id=running.runtime_id, endpoints=dict(running.endpoints)))
    elif found.autopsy is not None:
        draft.put(replace(cell, state=CellState.EXITED, autopsy=found.autopsy))
    else:
        draft.put(replace(cell, state=CellState.FAILED, autopsy=Death("found made but never started")))


# What the probes say.


def is_news(state: State, cell_id: str, error: str) -> bool:
    """Whether a probe's outcome would change anything. It hardly ever does, so a driver may ask before it makes an
    event of it."""
    cell = state.cells.get(cell_id)
    if cell is None or cell.state is not CellState.RUNNING:
        return False
    probe = cell.probe
    if probe is None:
        return True
    if error:
        return probe.consecutive_failures < cell.sick_after
    return not probe.has_passed or probe.consecutive_failures > 0


def probed(draft: Draft, event: ProbeFinished) -> None:
    cell = draft.cells[event.cell_id]
    before = cell.probe or ProbeStatus()
    if event.error:
        failures = before.consecutive_failures + 1
        after = ProbeStatus(before.has_passed, failures, event.error[:TEXT_CHARACTERS])
    else:
        after = ProbeStatus(has_passed=True)
    draft.put(replace(cell, probe=after))


# What the comparison with its spec says.


def compared(draft: Draft, event: Compared) -> None:
    """Told when it is news; a beat every half minute for each cell would say nothing."""
    cell = draft.cells.get(event.cell_id)
    if cell is not None and cell.state is CellState.RUNNING and cell.touched != event.touched:
        draft.put(replace(cell, touched=event.touched))
