"""The pure half of the neighbours' watch: ``step(state, event) -> (state, instructions)``.

Every neighbour is pinged once a second. A ping that stays unanswered is followed by others at once, and when
``SILENT_AFTER`` in a row brought nothing back the neighbour is *silent*. Of one that never answered nothing is
said: where UDP does not get through, or it does not know our key yet, its silence proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from galactica.agent.core.model import Answer, Neighbour, Testimony

PING_SECONDS = 1.0
AGAIN_SECONDS = 0.35
"""How long an answer may take until the next ping follows, while that is worth knowing soon."""
SILENT_AFTER = 3
"""With packet loss of 5 % each way one watcher errs about once in twenty minutes, and one alone decides nothing."""
LATE_SECONDS = 0.5
"""A tick that comes so late was held up by this agent itself: then what is missing proves nothing."""
AWAITED_LIMIT = 4
"""How many pings an answer may be to: one that took long is one all the same."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One neighbour as it is seen from here."""

    neighbour: Neighbour
    due_at: float
    """When it is to be pinged between beats; infinity: not before the next one."""
    awaited: tuple[int, ...] = ()
    """Sequences of the newest pings to which nothing came back; empty: something came back to the newest."""
    unanswered_since: float = 0.0
    missed: int = 0
    """Pings in a row to which nothing came back in time; it counts no further than SILENT_AFTER."""
    testimony: Testimony | None = None
    """None until it has answered once."""


@dataclass(frozen=True, slots=True)
class WatchState:
    """``sequence``: the newest ping's, over all neighbours; it begins at random, so that none is ever used twice."""

    sequence: int
    watched: Mapping[str, Watched] = field(default_factory=dict)
    beat_at: float = 0.0
    """When every neighbour is to be pinged next."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """Whom to watch from now on."""

    neighbours: Sequence[Neighbour]
    now: float


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer with our key came to the ping of that sequence."""

    server_id: str
    sequence: int
    now: float


@dataclass(frozen=True, slots=True)
class WasRefused:
    """The kernel there says that the port is closed."""

    server_id: str
    now: float


@dataclass(frozen=True, slots=True)
class Elapsed:
    """Time has passed: at or after what ``next_look`` said."""

    now: float


WatchEvent = Assigned | Answered | WasRefused | Elapsed


@dataclass(frozen=True, slots=True)
class Ping:
    server_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Everything that can be said now; it differs from what was said before."""

    testimonies: tuple[Testimony, ...]


WatchInstruction = Ping | Tell


def step(state: WatchState, event: WatchEvent) -> tuple[WatchState, tuple[WatchInstruction, ...]]:
    """The state after the event, and what is to be done because of it."""
    match event:
        case Assigned():
            after = _assigned(state, event)
            return after, _news(state, after)
        case Answered():
            after = _answered(state, event)
            return after, _news(state, after)
        case WasRefused():
            after = _refused(state, event)
            return after, _news(state, after)
        case Elapsed():
            after, pings = _elapsed(state, event.now)
            return after, (*pings, *_news(state, after))
        case _:
            assert_never(event)


def next_look(state: WatchState) -> float:
    """When ``Elapsed`` is due if nothing happens before; infinity where nobody is watched."""
    if not state.watched:
        return math.inf
    return min(state.beat_at, *(one.due_at for one in state.watched.values()))


def said(state: WatchState) -> tuple[Testimony, ...]:
    """Everything that can be said now."""
    return tuple(one.testimony for one in state.watched.values() if one.testimony is not None)


def _news(before: WatchState, after: WatchState) -> tuple[Tell, ...]:
    if before.watched is after.watched:
        return ()
    now = said(after)
    return (Tell(now),) if now != said(before) else ()


def _assigned(state: WatchState, event: Assigned) -> WatchState:
    """Who stays, at the same address and with the same key, goes on as it was."""
    watched = {}
    for neighbour in event.neighbours:
        known = state.watched.get(neighbour.server_id)
        if known is None or known.neighbour != neighbour:
            known = Watched(neighbour, due_at=event.now)
        watched[neighbour.server_id] = known
    beat_at = state.beat_at if state.watched else event.now + PING_SECONDS
    return replace(state, watched=watched, beat_at=beat_at)


def _answered(state: WatchState, event: Answered) -> WatchState:
    known = state.watched.get(event.server_id)
    if known is None or event.sequence not in known.awaited:
        return state
    return _with(state, _settled(known, Answer.ANSWERS, event.now))


def _refused(state: WatchState, event: WasRefused) -> WatchState:
    known = state.watched.get(event.server_id)
    if known is None or not known.awaited:
        return state
    if known.testimony is None:
        return _with(state, replace(known, due_at=math.inf, awaited=(), missed=0))
    return _with(state, _settled(known, Answer.REFUSED, event.now))


def _settled(known: Watched, answer: Answer, now: float) -> Watched:
    testimony = _testimony(known, answer, now)
    return replace(known, due_at=math.inf, awaited=(), missed=0, testimony=testimony)


def _testimony(known: Watched, answer: Answer, since: float) -> Testimony:
    if known.testimony is not None and known.testimony.answer is answer:
        return known.testimony
    return Testimony(known.neighbour.server_id, answer, since)


def _elapsed(state: WatchState, now: float) -> tuple[WatchState, list[Ping]]:
    is_beat = now >= state.beat_at
    is_late = now >= next_look(state) + LATE_SECONDS
    sequence = state.sequence
    watched = dict(state.watched)
    pings = []
    for server_id, known in state.watched.items():
        if now < known.due_at and not (is_beat and known.due_at == math.inf):
            continue
        sequence = (sequence + 1) % 2**64
        pings.append(Ping(server_id, sequence))
        watched[server_id] = _pinged(_begun_anew(known, now) if is_late else _missed(known), sequence, now)
    beat_at = now + PING_SECONDS if is_beat else state.beat_at
    return WatchState(sequence, watched, beat_at), pings


def _begun_anew(known: Watched, now: float) -> Watched:
    """What we did not see while we were held up is not held against it."""
    return replace(known, missed=0, unanswered_since=now)


def _missed(known: Watched) -> Watched:
    """Where nothing came back to its newest ping: in time, or until this beat."""
    if not known.awaited or known.missed >= SILENT_AFTER:
        return known
    known = replace(known, missed=known.missed + 1)
    if known.missed < SILENT_AFTER or known.testimony is None:
        return known
    return replace(known, testimony=_testimony(known, Answer.SILENT, known.unanswered_since))


def _pinged(known: Watched, sequence: int, now: float) -> Watched:
    """Another ping follows soon where no answer comes, until enough were missed to say something."""
    return replace(
        known,
        due_at=now + AGAIN_SECONDS if known.missed < SILENT_AFTER else math.inf,
        awaited=(*known.awaited, sequence)[-AWAITED_LIMIT:],
        unanswered_since=known.unanswered_since if known.awaited else now,
    )


def _with(state: WatchState, known: Watched) -> WatchState:
    return replace(state, watched={**state.watched, known.neighbour.server_id: known})
