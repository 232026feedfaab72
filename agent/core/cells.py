"""The life of a cell: ordered, started, watched, probed, decommissioned, gone. Part of the agent's pure half."""

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
"""How many cells one agent runs. An order beyond that is reported as FAILED."""
START_PATIENCE_SECONDS = 30.0
"""How long the agent tries to start a cell while the engine does not answer."""
RETRY_FIRST_SECONDS = 0.5
RETRY_LIMIT_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
"""Least time between two progress texts of one cell."""
TEXT_CHARACTERS = 300
ORPHAN_STOP = ("SIGTERM", 10.0)
"""Signal and grace of a cell whose order has none."""


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
        death = Death(f"this server already runs {CELLS_LIMIT} cells, the limit of an agent")
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
    cell = replace(_beyond_doubt(cell), state=CellState.STOPPING, progress="", tries=0)
    draft.put(cell)
    draft.retry(cell.id, None)
    # A start and a stop of one cell would race in the runtime: the stop waits until the start has ended.
    if not cell.start_in_flight:
        _emit_stop(draft, cell)
    elif cell.is_exclusive:  # a start may take long, and the scheduler relies on the end of this cell
        draft.emit(AbandonStart(cell.id))


def stop_of(order: link_pb2.Order) -> tuple[str, float]:
    """Signal and grace in seconds."""
    named = order.spec.stop
    return (named.signal, named.grace_ms / 1_000) if named.signal else ORPHAN_STOP


def _emit_stop(draft: Draft, cell: Cell) -> None:
    signal, grace_seconds = stop_of(cell.order)
    if cell.is_exclusive:
        # Whoever ends it: the scheduler counts the grace from the end of the lease at the latest, so that time in which
        # the host slept counts too.
        grace_seconds = max(0.0, min(grace_seconds, draft.state.fence_at + grace_seconds - draft.now))
        signal = signal if grace_seconds else "SIGKILL"
    draft.emit(StopCell(cell.id, cell.kind, signal, grace_seconds))


# Results and observations of the runtime.


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
        _beyond_doubt(cell),
        start_in_flight=False,
        runtime_id=event.runtime_id,
        endpoints=event.endpoints,
        direct=event.direct,
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
        draft.emit(StartProbing(cell.order, cell.endpoints, cell.direct))


def start_failed(draft: Draft, cell_id: str, reason: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None or not cell.start_in_flight:
        return
    cell = replace(_beyond_doubt(cell), start_in_flight=False, progress="", tries=0)
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
    if event.may_run and cell.state is CellState.STARTING:
        cell = _doubted(cell, event.reason, draft.now)
    # A cell that may run is never told as failed: a failed one may be replaced at once. What the agent itself lacks is
    # no failure of the cell either: its server's vitals tell it.
    is_over = waited >= START_PATIENCE_SECONDS and not cell.doubt and not event.is_starved
    if cell.state is not CellState.STARTING or is_over:
        start_failed(draft, cell.id, f"not started within {waited:.0f} s: {event.reason}")
        return
    # While it waits for the next attempt the start is not in flight: a decommission takes effect at once.
    progress = f"waiting to try again: {event.reason}"[:TEXT_CHARACTERS]
    cell = replace(cell, start_in_flight=False, tries=cell.tries + 1, progress=progress)
    draft.put(cell)
    draft.retry(cell.id, draft.now + _retry_seconds(cell.tries))


def stop_failed(draft: Draft, event: StopFailed) -> None:
    """Try again until the cell is stopped, with bounded pauses."""
    cell = draft.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.STOPPING:
        return
    progress = f"waiting to try again: {event.reason}"[:TEXT_CHARACTERS]
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
    """The death may be reported before the cell's start returns."""
    cell = draft.cells.get(cell_id)
    if cell is None or cell.state not in {CellState.STARTING, CellState.RUNNING}:
        return
    if cell.state is CellState.RUNNING and cell.is_probed:
        draft.emit(StopProbing(cell.id))
    draft.put(replace(_beyond_doubt(cell), state=CellState.EXITED, autopsy=autopsy, progress=""))


# What a list says.


def relisted(draft: Draft, event: Relisted) -> None:
    listed = {found.order.cell_id: found for found in event.found}
    for cell_id, found in listed.items():
        cell = draft.cells.get(cell_id)
        if cell is not None:
            _found_again(draft, cell, found, event.asked_at)
        elif draft.gone.get(cell_id, -math.inf) < event.asked_at:
            # Not the order's runtime: the order may be damaged.
            _adopt(draft, replace(_cell_of(found.order), kind=event.kind), found)
    vanished = [cell for cell in _of_kind(draft.cells.values(), event.kind) if cell.id not in listed]
    for cell in vanished:
        if _ran_at(cell, event.asked_at) or _is_in_doubt_only(draft, cell, event.asked_at):
            died(draft, cell.id, Death("the cell vanished: the agent did not remove it", _lived(draft, cell)))


def _of_kind(cells: Iterable[Cell], kind: int) -> tuple[Cell, ...]:
    return tuple(cell for cell in cells if cell.kind == kind)


def _ran_at(cell: Cell, asked_at: float) -> bool:
    return cell.state is CellState.RUNNING and cell.running_since < asked_at


def _lived(draft: Draft, cell: Cell) -> float:
    return draft.now - cell.running_since if cell.state is CellState.RUNNING else 0.0


def _found_again(draft: Draft, cell: Cell, found: Found, asked_at: float) -> None:
    """A doubtful cell keeps its last state: an inspection that fails says nothing about the cell."""
    has_run = _ran_at(cell, asked_at)
    is_in_doubt_only = _is_in_doubt_only(draft, cell, asked_at)
    if found.doubt:
        if (has_run or is_in_doubt_only) and cell.doubt != found.doubt[:TEXT_CHARACTERS]:
            draft.put(_doubted(cell, found.doubt, draft.now))
    elif is_in_doubt_only:
        # From the order anew: a list in doubt may have known less of it.
        _adopt(draft, replace(_cell_of(found.order), kind=cell.kind), found)
    elif has_run and found.running is None:
        died(draft, cell.id, found.autopsy or Death("found dead", _lived(draft, cell)))
    elif has_run and cell.doubt:
        draft.put(_beyond_doubt(cell))


def _adopt(draft: Draft, cell: Cell, found: Found) -> None:
    if found.doubt:
        draft.put(_doubted(replace(cell, runtime_id=found.runtime_id), found.doubt, draft.now))
    elif found.running is not None:
        running = found.running
        adopted = replace(
            cell,
            runtime_id=running.runtime_id,
            endpoints=dict(running.endpoints),
            direct=dict(running.direct),
        )
        _run(draft, adopted)
    elif found.autopsy is not None:
        draft.put(replace(cell, state=CellState.EXITED, autopsy=found.autopsy))
    else:
        draft.put(replace(cell, state=CellState.FAILED, autopsy=Death("found created but not started")))


# Doubt: the runtime has the cell, and cannot tell how it is.


def _doubted(cell: Cell, doubt: str, now: float) -> Cell:
    return replace(cell, doubt=doubt[:TEXT_CHARACTERS], doubted_at=now)


def _beyond_doubt(cell: Cell) -> Cell:
    return replace(cell, doubt="", doubted_at=math.inf) if cell.doubt else cell


def _is_in_doubt_only(draft: Draft, cell: Cell, asked_at: float) -> bool:
    """Whether nothing but a list has ever told of the cell, and no list could tell how it is. A start that is under
    way or will be tried again settles its doubt by itself."""
    return (
        cell.state is CellState.STARTING
        and not cell.start_in_flight
        and cell.id not in draft.state.retries
        and cell.doubted_at < asked_at
    )


# Results of the probes.


def is_news(state: State, cell_id: str, error: str) -> bool:
    """Whether a probe's outcome changes the state. Most outcomes do not, so the driver asks before it creates an
    event."""
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


# Results of the comparison with the spec.


def compared(draft: Draft, event: Compared) -> None:
    """Report only a change: the comparison runs twice a minute for each cell."""
    cell = draft.cells.get(event.cell_id)
    if cell is not None and cell.state is CellState.RUNNING and cell.touched != event.touched:
        draft.put(replace(cell, touched=event.touched))
