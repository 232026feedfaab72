"""The pure half of the agent: ``step(state, event) -> (state, instructions)``.

No clock, no IO, no tasks: events carry the time. The driver (``daemon``) feeds events one at a time, carries out the
instructions, and comes back with a ``Tick`` at ``next_look(state)``.

The rules in short: orders are idempotent by cell id; a cell that was ever here and is gone never comes back; a dead
cell stays on the list, with its autopsy, until it is decommissioned; a broken session stops nothing; every change is
told at once, and a beat goes out when there was nothing to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, assert_never

from agent import reporting
from agent.messages import (
    CellState,
    CloseSession,
    ClosingDown,
    Connected,
    Death,
    Decommissioned,
    Died,
    Disconnected,
    Echoed,
    Event,
    FetchLogs,
    Instructed,
    Instruction,
    LogsAsked,
    LogsDeclined,
    Ordered,
    ProbeFinished,
    ProbeStatus,
    Progressed,
    RefuseLogs,
    Relisted,
    RememberEpoch,
    ResyncAsked,
    Retuned,
    SendHello,
    StartCell,
    StartDeferred,
    Started,
    StartFailed,
    StartProbing,
    StopCell,
    StopFailed,
    StopLogs,
    Stopped,
    StopProbing,
    Tick,
    Verb,
    VitalsTaken,
    Welcomed,
)
from agent.reporting import Cell, Session

if TYPE_CHECKING:
    from galactica.v1 import cell_pb2, link_pb2

    from agent.messages import CellReport
    from agent.runtimes import Found

CELLS_LIMIT = 1_000
"""How many cells one agent carries; an order above that is answered with FAILED."""
GONE_KEPT = 1_000
"""How many cells that are gone are remembered, so that a late order cannot bring one back."""
START_PATIENCE_SECONDS = 30.0
"""How long a start is tried while the engine does not answer."""
RETRY_FIRST_SECONDS = 0.5
RETRY_LIMIT_SECONDS = 5.0
PROGRESS_SECONDS = 1.0
"""A cell's progress is told no more often than this."""
ERROR_CHARACTERS = 300
ORPHAN_STOP = ("SIGTERM", 10.0)
"""The stop of a cell whose order names none."""


@dataclass(frozen=True, slots=True)
class State:
    """Everything the agent knows. The mappings are never changed once they are in here."""

    cells: Mapping[str, Cell] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)
    """Cells that were stopped and removed, and when; the newest ``GONE_KEPT``."""
    retries: Mapping[str, float] = field(default_factory=dict)
    """When to try again to start or stop a cell, where the engine did not answer."""
    epoch: int = 0
    """The highest scheduler epoch that was obeyed."""
    session: Session | None = None
    greeting: int | None = None
    """The link that was sent a Hello and has not answered yet."""
    since_hello: Mapping[str, CellReport | None] = field(default_factory=dict)
    """What changed since that Hello: its session's first report."""
    vitals: cell_pb2.Vitals | None = None
    is_closing: bool = False


def step(state: State, event: Event) -> tuple[State, tuple[Instruction, ...]]:
    """The state after the event, and what is to be done because of it, in order."""
    if isinstance(event, ProbeFinished) and _tells_nothing_new(state, event):
        return state, ()
    draft = _Draft(state, event.now)
    _take(draft, event)
    return draft.settle()


def next_look(state: State) -> float:
    """When a Tick is due if nothing happens before; infinity if never."""
    looks = [reporting.next_look(state.session)] if state.session else []
    return min([*looks, *state.retries.values()], default=math.inf)


class _Draft:
    """One step under way: what changed so far, and the instructions that follow."""

    __slots__ = ("_cells", "_gone", "_instructions", "_news", "_retries", "_state", "now")

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self.now = now
        self._cells: dict[str, Cell] | None = None
        self._gone: dict[str, float] | None = None
        self._retries: dict[str, float] | None = None
        self._news: dict[str, CellReport | None] = {}
        self._instructions: list[Instruction] = []

    @property
    def cells(self) -> Mapping[str, Cell]:
        return self._state.cells if self._cells is None else self._cells

    @property
    def gone(self) -> Mapping[str, float]:
        return self._state.gone if self._gone is None else self._gone

    @property
    def state(self) -> State:
        """The state but for cells, retries and news, which are the draft's own."""
        return self._state

    def change(self, **fields: object) -> None:
        self._state = replace(self._state, **fields)  # type: ignore[arg-type]

    def emit(self, instruction: Instruction) -> None:
        self._instructions.append(instruction)

    def tell(self, cell_id: str, report: CellReport | None = None) -> None:
        """Put a cell on the next report: as it is when that goes out, or as ``report`` says."""
        self._news[cell_id] = report

    def put(self, cell: Cell) -> None:
        if self._cells is None:
            self._cells = dict(self._state.cells)
        self._cells[cell.id] = cell
        self.tell(cell.id)

    def bury(self, cell: Cell) -> None:
        if self._cells is None:
            self._cells = dict(self._state.cells)
        if self._gone is None:
            self._gone = dict(self._state.gone)
        del self._cells[cell.id]
        self._gone[cell.id] = self.now
        while len(self._gone) > GONE_KEPT:
            del self._gone[next(iter(self._gone))]
        self.retry(cell.id, None)
        self.tell(cell.id, reporting.gone(cell.id, cell.digest))

    def retry(self, cell_id: str, at: float | None) -> None:
        """Look at the cell again at that time; None: no more."""
        retries = self._state.retries if self._retries is None else self._retries
        if at is None and cell_id not in retries:
            return
        self._retries = dict(retries)
        if at is None:
            del self._retries[cell_id]
        else:
            self._retries[cell_id] = at

    def settle(self) -> tuple[State, tuple[Instruction, ...]]:
        """The state and the instructions, with the report that is due as the last of them."""
        state = self._state
        if self._cells is not None or self._gone is not None or self._retries is not None:
            state = replace(
                state,
                cells=self.cells,
                gone=self.gone,
                retries=state.retries if self._retries is None else self._retries,
            )
        if self._news and state.greeting is not None:
            state = replace(state, since_hello={**state.since_hello, **self._news})
        if state.session:
            session, report = reporting.flush(state.session, self._news, state.cells, state.vitals, self.now)
            if session is not state.session:
                state = replace(state, session=session)
            if report:
                self._instructions.append(report)
        return state, tuple(self._instructions)


def _take(draft: _Draft, event: Event) -> None:  # noqa: C901, PLR0912 - one table: event to what it does
    match event:
        case Relisted():
            _relisted(draft, event)
        case Connected():
            draft.change(greeting=event.link, since_hello={})
            inventory = tuple(map(reporting.report, draft.cells.values()))
            draft.emit(SendHello(event.link, inventory, draft.state.epoch))
        case Welcomed():
            _welcomed(draft, event)
        case Retuned() | Echoed():
            _heard(draft, event)
        case Disconnected():
            _disconnected(draft, event)
        case Instructed():
            _instructed(draft, event)
        case Progressed():
            _progressed(draft, event)
        case Started():
            _started(draft, event)
        case StartFailed():
            _start_failed(draft, event.cell_id, event.reason)
        case StartDeferred():
            _start_deferred(draft, event)
        case Died():
            _died(draft, event.cell_id, event.autopsy)
        case Stopped():
            cell = draft.cells.get(event.cell_id)
            if cell is not None and cell.state is CellState.STOPPING:
                draft.bury(cell)
        case StopFailed():
            _stop_failed(draft, event)
        case ProbeFinished():
            _probed(draft, event)
        case VitalsTaken():
            draft.change(vitals=event.vitals)
        case ClosingDown():
            draft.change(is_closing=True)
            for cell in tuple(draft.cells.values()):
                _decommissioned(draft, cell.id)
        case Tick():
            _tick(draft)
        case _:
            assert_never(event)


# The link.


def _welcomed(draft: _Draft, event: Welcomed) -> None:
    state = draft.state
    if state.greeting != event.link:
        return
    draft.change(greeting=None, since_hello={})
    if event.epoch < state.epoch:
        reason = f"a scheduler of epoch {event.epoch} called, but epoch {state.epoch} was obeyed already"
        draft.emit(CloseSession(event.link, reason))
        return
    if event.epoch > state.epoch:
        draft.change(epoch=event.epoch)
        draft.emit(RememberEpoch(event.epoch))
    session = Session(
        link=event.link,
        id=event.session,
        beat_seconds=event.beat_seconds,
        lease_seconds=event.lease_seconds,
        heard_at=draft.now,
        sent_at=draft.now,
        unsent=state.since_hello,
    )
    draft.change(session=session)


def _heard(draft: _Draft, event: Retuned | Echoed | Instructed) -> Session | None:
    """Note that the scheduler spoke: the session in force, None where the event is of another one."""
    session = draft.state.session
    if session is None or session.link != event.link:
        return None
    session = replace(session, heard_at=draft.now)
    if isinstance(event, Retuned):
        session = replace(session, beat_seconds=event.beat_seconds, lease_seconds=event.lease_seconds)
    draft.change(session=session)
    return session


def _disconnected(draft: _Draft, event: Disconnected) -> None:
    """Cells outlive sessions: nothing is stopped."""
    if draft.state.greeting == event.link:
        draft.change(greeting=None, since_hello={})
    if draft.state.session and draft.state.session.link == event.link:
        draft.change(session=None)


def _instructed(draft: _Draft, event: Instructed) -> None:
    session = _heard(draft, event)
    if session is None or session.id != event.session or event.sequence <= session.taken:
        return
    # A gap is harmless: what was lost is sent again for as long as the reports do not show it.
    draft.change(session=replace(session, taken=event.sequence))
    for verb in event.verbs:
        _obey(draft, verb, event.link)


def _obey(draft: _Draft, verb: Verb, link: int) -> None:
    match verb:
        case Ordered():
            _ordered(draft, verb.order)
        case Decommissioned():
            _decommissioned(draft, verb.cell_id)
        case ResyncAsked():
            session = draft.state.session
            draft.change(session=replace(session, owes_everything=True) if session else None)
        case LogsAsked():
            cell = draft.cells.get(verb.cell_id)
            if cell is None:
                draft.emit(RefuseLogs(link, verb.stream, f"{verb.cell_id} is not on this server"))
            else:
                draft.emit(FetchLogs(link, verb.stream, cell.id, cell.kind, verb.tail, verb.follow))
        case LogsDeclined():
            draft.emit(StopLogs(link, verb.stream))
        case _:
            assert_never(verb)


def _tick(draft: _Draft) -> None:
    for cell_id, at in tuple(draft.state.retries.items()):
        if at <= draft.now:
            draft.retry(cell_id, None)
            _try_again(draft, draft.cells[cell_id])
    session = draft.state.session
    if session and draft.now - session.heard_at > session.lease_seconds:
        silence = draft.now - session.heard_at
        draft.emit(CloseSession(session.link, f"the scheduler was silent for {silence:.1f} s"))
        draft.change(session=None)


# The two verbs.


def _ordered(draft: _Draft, order: link_pb2.Order) -> None:
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


def _decommissioned(draft: _Draft, cell_id: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None:
        draft.tell(cell_id, reporting.gone(cell_id, ""))
    elif cell.state is CellState.STOPPING:
        draft.tell(cell_id)
    else:
        _stop(draft, cell)


def _stop(draft: _Draft, cell: Cell) -> None:
    if cell.state is CellState.RUNNING and cell.is_probed:
        draft.emit(StopProbing(cell.id))
    cell = replace(cell, state=CellState.STOPPING, progress="", tries=0)
    draft.put(cell)
    draft.retry(cell.id, None)
    # Two hands on one cell would race in the runtime: a start ends first, then the cell is stopped.
    if not cell.start_in_flight:
        _emit_stop(draft, cell)


def _emit_stop(draft: _Draft, cell: Cell) -> None:
    stop = cell.order.spec.stop
    signal, grace_seconds = (stop.signal, stop.grace_ms / 1_000) if stop.signal else ORPHAN_STOP
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


def _progressed(draft: _Draft, event: Progressed) -> None:
    cell = draft.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.STARTING:
        return
    if draft.now - cell.progress_at >= PROGRESS_SECONDS:
        draft.put(replace(cell, progress=event.text[:ERROR_CHARACTERS], progress_at=draft.now))


def _started(draft: _Draft, event: Started) -> None:
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


def _run(draft: _Draft, cell: Cell) -> None:
    cell = replace(cell, state=CellState.RUNNING, running_since=draft.now)
    draft.put(cell)
    if cell.is_probed:
        draft.emit(StartProbing(cell.order, cell.endpoints))


def _start_failed(draft: _Draft, cell_id: str, reason: str) -> None:
    cell = draft.cells.get(cell_id)
    if cell is None or not cell.start_in_flight:
        return
    cell = replace(cell, start_in_flight=False, progress="", tries=0)
    if cell.state is CellState.STARTING:
        cell = replace(cell, state=CellState.FAILED, autopsy=Death(reason))
    draft.put(cell)
    if cell.state is CellState.STOPPING:
        _emit_stop(draft, cell)


def _start_deferred(draft: _Draft, event: StartDeferred) -> None:
    cell = draft.cells.get(event.cell_id)
    if cell is None or not cell.start_in_flight:
        return
    waited = draft.now - cell.tried_since
    if cell.state is not CellState.STARTING or waited >= START_PATIENCE_SECONDS:
        _start_failed(draft, cell.id, f"not started within {waited:.0f} s: {event.reason}")
        return
    # The start is not in flight while it waits, so that a decommission need not wait for it.
    progress = f"will be tried again: {event.reason}"[:ERROR_CHARACTERS]
    cell = replace(cell, start_in_flight=False, tries=cell.tries + 1, progress=progress)
    draft.put(cell)
    draft.retry(cell.id, draft.now + _retry_seconds(cell.tries))


def _stop_failed(draft: _Draft, event: StopFailed) -> None:
    """A cell that must go is tried for as long as it takes, with bounded pauses."""
    cell = draft.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.STOPPING:
        return
    progress = f"will be tried again: {event.reason}"[:ERROR_CHARACTERS]
    cell = replace(cell, tries=cell.tries + 1, progress=progress)
    draft.put(cell)
    draft.retry(cell.id, draft.now + _retry_seconds(cell.tries))


def _retry_seconds(tries: int) -> float:
    return min(RETRY_LIMIT_SECONDS, RETRY_FIRST_SECONDS * 2.0 ** min(tries - 1, 10))


def _try_again(draft: _Draft, cell: Cell) -> None:
    if cell.state is CellState.STARTING:
        draft.put(replace(cell, start_in_flight=True))
        draft.emit(StartCell(cell.order))
    elif cell.state is CellState.STOPPING:
        _emit_stop(draft, cell)


def _died(draft: _Draft, cell_id: str, autopsy: cell_pb2.Autopsy | Death) -> None:
    """A death may be seen before the start that it followed returns."""
    cell = draft.cells.get(cell_id)
    if cell is None or cell.state not in {CellState.STARTING, CellState.RUNNING}:
        return
    if cell.state is CellState.RUNNING and cell.is_probed:
        draft.emit(StopProbing(cell.id))
    draft.put(replace(cell, state=CellState.EXITED, autopsy=autopsy, progress=""))


def _relisted(draft: _Draft, event: Relisted) -> None:
    found = {one.order.cell_id: one for one in event.found}
    for cell_id, one in found.items():
        cell = draft.cells.get(cell_id)
        if cell is None and draft.gone.get(cell_id, -math.inf) < event.asked_at:
            _adopt(draft, one)
        elif cell is not None and one.running is None and _ran_at(cell, event.asked_at):
            _died(draft, cell_id, one.autopsy or Death("found dead", draft.now - cell.running_since))
    vanished = [cell for cell in _of_kind(draft.cells.values(), event.kind) if cell.id not in found]
    for cell in vanished:
        if _ran_at(cell, event.asked_at):
            reason = "it vanished: something other than the agent removed it"
            _died(draft, cell.id, Death(reason, draft.now - cell.running_since))


def _of_kind(cells: Iterable[Cell], kind: int) -> tuple[Cell, ...]:
    return tuple(cell for cell in cells if cell.kind == kind)


def _ran_at(cell: Cell, asked_at: float) -> bool:
    return cell.state is CellState.RUNNING and cell.running_since < asked_at


def _adopt(draft: _Draft, found: Found) -> None:
    cell = _cell_of(found.order)
    if found.running is not None:
        running = found.running
        _run(draft, replace(cell, runtime_id=running.runtime_id, endpoints=dict(running.endpoints)))
    elif found.autopsy is not None:
        draft.put(replace(cell, state=CellState.EXITED, autopsy=found.autopsy))
    else:
        draft.put(replace(cell, state=CellState.FAILED, autopsy=Death("found made but never started")))


# What the probes say.


def _tells_nothing_new(state: State, event: ProbeFinished) -> bool:
    """The way of nearly every probe: as cheap as can be."""
    cell = state.cells.get(event.cell_id)
    if cell is None or cell.state is not CellState.RUNNING:
        return True
    probe = cell.probe
    if probe is None:
        return False
    if event.error:
        return probe.consecutive_failures >= cell.sick_after
    return probe.has_passed and probe.consecutive_failures == 0


def _probed(draft: _Draft, event: ProbeFinished) -> None:
    cell = draft.cells[event.cell_id]
    before = cell.probe or ProbeStatus()
    if event.error:
        failures = before.consecutive_failures + 1
        after = ProbeStatus(before.has_passed, failures, event.error[:ERROR_CHARACTERS])
    else:
        after = ProbeStatus(has_passed=True)
    draft.put(replace(cell, probe=after))
