"""The pure half of the agent: ``step(state, event) -> (state, instructions)``.

No clock, no IO, no tasks: events carry the time. The driver (``daemon``) feeds events one at a time, carries out
the instructions, and sends a ``Tick`` at ``next_look(state)``.

The rules in short: orders are idempotent by cell id; a removed cell never comes back; a dead cell stays listed, with
its autopsy, until it is decommissioned; the end of a session stops no cell; every change is reported at once, and a
beat is sent when nothing has changed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

from galactica.agent.core import cells as life
from galactica.agent.core import fence, reporting
from galactica.agent.core.cells import is_news
from galactica.agent.core.draft import Draft
from galactica.agent.core.events import (
    ClosingDown,
    Compared,
    Connected,
    Decommissioned,
    Died,
    Disconnected,
    Echoed,
    Event,
    Instructed,
    LogsAsked,
    LogsDeclined,
    NeighboursGiven,
    Ordered,
    ProbeFinished,
    Progressed,
    Relisted,
    ResyncAsked,
    Retuned,
    StartDeferred,
    Started,
    StartFailed,
    StopFailed,
    Stopped,
    Testified,
    Tick,
    Verb,
    VitalsTaken,
    Welcomed,
)
from galactica.agent.core.instructions import (
    CloseSession,
    FetchLogs,
    Instruction,
    RefuseLogs,
    RememberEpoch,
    SendHello,
    StopLogs,
    WatchNeighbours,
)
from galactica.agent.core.model import Session, State

__all__ = ["State", "is_news", "next_look", "step"]


def step(state: State, event: Event) -> tuple[State, tuple[Instruction, ...]]:
    """Returns the state after the event, and the instructions in order."""
    if isinstance(event, ProbeFinished) and not is_news(state, event.cell_id, event.error):
        return state, ()
    draft = Draft(state, event.now)
    _take(draft, event)
    fence.mind(draft)
    after, instructions = draft.settle()
    return after, (*fence.to_remember(state, after), *instructions)


def next_look(state: State) -> float:
    """When the next Tick is due; infinity: never."""
    looks = [reporting.next_look(state.session)] if state.session else []
    if fence.has_live(state):
        looks.append(state.fence_at)
    return min([*looks, *state.retries.values()], default=math.inf)


def _take(draft: Draft, event: Event) -> None:  # noqa: C901, PLR0912 - one table: event to action
    match event:
        case Relisted():
            life.relisted(draft, event)
        case Connected():
            _connected(draft, event)
        case Welcomed():
            _welcomed(draft, event)
        case Retuned():
            _heard(draft, event)
        case Echoed():
            if session := _heard(draft, event):
                _know_of(draft, event.position)
                fence.grant(draft, event.beat_at, session.lease_seconds)
        case NeighboursGiven():
            if _heard(draft, event):
                draft.emit(WatchNeighbours(event.neighbours, event.accepted_keys))
        case Testified():
            _testified(draft, event)
        case Disconnected():
            _disconnected(draft, event)
        case Instructed():
            _instructed(draft, event)
        case Progressed():
            life.progressed(draft, event)
        case Started():
            life.started(draft, event)
        case StartFailed():
            life.start_failed(draft, event.cell_id, event.reason)
        case StartDeferred():
            life.start_deferred(draft, event)
        case Died():
            life.died(draft, event.cell_id, event.autopsy)
        case Stopped():
            life.stopped(draft, event.cell_id)
        case StopFailed():
            life.stop_failed(draft, event)
        case ProbeFinished():
            life.probed(draft, event)
        case Compared():
            life.compared(draft, event)
        case VitalsTaken():
            draft.change(vitals=event.vitals)
        case ClosingDown():
            draft.change(is_closing=True)
            for cell in tuple(draft.cells.values()):
                life.decommissioned(draft, cell.id)
        case Tick():
            _tick(draft)
        case _:
            assert_never(event)


def _tick(draft: Draft) -> None:
    for cell_id, at in tuple(draft.state.retries.items()):
        if at <= draft.now:
            draft.retry(cell_id, None)
            life.try_again(draft, draft.cells[cell_id])
    session = draft.state.session
    if session and draft.now >= session.heard_at + session.lease_seconds:
        silence = draft.now - session.heard_at
        draft.emit(CloseSession(session.link, f"the scheduler was silent for {silence:.1f} s"))
        draft.change(session=None)


# The link.


def _connected(draft: Draft, event: Connected) -> None:
    draft.change(greeting=event.link, since_hello={})
    inventory = tuple(map(reporting.report, draft.cells.values()))
    known = draft.state
    draft.emit(SendHello(event.link, inventory, known.epoch, draft.now, known.start, known.position))


def _welcomed(draft: Draft, event: Welcomed) -> None:
    state = draft.state
    if state.greeting != event.link:
        return
    draft.change(greeting=None, since_hello={})
    if event.epoch < state.epoch:
        reason = f"outdated scheduler: its epoch is {event.epoch}, the agent has obeyed epoch {state.epoch}"
        draft.emit(CloseSession(event.link, reason))
        return
    if (event.epoch, event.start) != (state.epoch, state.start):
        draft.change(epoch=event.epoch, start=event.start, position=0)
        draft.emit(RememberEpoch(event.epoch, event.start))
    _know_of(draft, event.position)
    session = Session(
        link=event.link,
        id=event.session,
        beat_seconds=event.beat_seconds,
        lease_seconds=event.lease_seconds,
        heard_at=draft.now,
        sent_at=draft.now,
        unsent=state.since_hello,
        untold=state.testimonies,
    )
    draft.change(session=session)
    fence.grant(draft, event.beat_at, event.lease_seconds)


def _know_of(draft: Draft, position: int) -> None:
    if position > draft.state.position:
        draft.change(position=position)


def _heard(draft: Draft, event: Retuned | Echoed | NeighboursGiven | Instructed) -> Session | None:
    """Note that the scheduler sent something. Returns the current session, or None if the event belongs to another."""
    session = draft.state.session
    if session is None or session.link != event.link:
        return None
    session = replace(session, heard_at=draft.now)
    if isinstance(event, Retuned):
        session = replace(session, beat_seconds=event.beat_seconds, lease_seconds=event.lease_seconds)
    draft.change(session=session)
    return session


def _testified(draft: Draft, event: Testified) -> None:
    before, session = draft.state.testimonies, draft.state.session
    now = {testimony.server_id: testimony for testimony in event.testimonies}
    draft.change(
        testimonies=now, session=reporting.testified(session, before, now) if session is not None else None
    )


def _disconnected(draft: Draft, event: Disconnected) -> None:
    """Cells outlive sessions: no cell is stopped."""
    if draft.state.greeting == event.link:
        draft.change(greeting=None, since_hello={})
    if draft.state.session and draft.state.session.link == event.link:
        draft.change(session=None)


def _instructed(draft: Draft, event: Instructed) -> None:
    session = _heard(draft, event)
    if session is None or session.id != event.session or event.sequence <= session.taken:
        return
    if event.epoch < draft.state.epoch:
        reason = f"outdated instructions: their epoch is {event.epoch}, the agent has obeyed epoch {draft.state.epoch}"
        draft.emit(CloseSession(event.link, reason))
        draft.change(session=None)
        return
    # A gap is harmless: the scheduler sends an instruction again until the reports show its effect.
    draft.change(session=replace(session, taken=event.sequence))
    for verb in event.verbs:
        _obey(draft, verb, event.link)


def _obey(draft: Draft, verb: Verb, link: int) -> None:
    match verb:
        case Ordered():
            session = draft.state.session
            if session is not None and verb.order.spec.exclusive:
                fence.grant(draft, verb.beat_at, session.lease_seconds)
                if draft.now >= verb.beat_at + session.lease_seconds:
                    return  # the order is too old; if it is still valid, the scheduler sends it again
            life.ordered(draft, verb.order)
        case Decommissioned():
            life.decommissioned(draft, verb.cell_id)
        case ResyncAsked():
            session = draft.state.session
            draft.change(session=replace(session, owes_everything=True) if session else None)
        case LogsAsked():
            cell = draft.cells.get(verb.cell_id)
            if cell is None:
                draft.emit(RefuseLogs(link, verb.stream, f"no cell {verb.cell_id} on this server"))
            else:
                draft.emit(FetchLogs(link, verb.stream, cell.id, cell.kind, verb.tail, verb.follow))
        case LogsDeclined():
            draft.emit(StopLogs(link, verb.stream))
        case _:
            assert_never(verb)
