"""The pure half of the neighbours' watch: ``step(state, event) -> (state, instructions)``.

Every neighbour is pinged once a second. After an unanswered ping others follow soon. When ``SILENT_AFTER`` pings in a
row are unanswered, the neighbour is *silent*. There is no testimony about a neighbour that has never answered: UDP
may be blocked, or it may not know our key yet, so its silence proves nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from galactica.agent.core.model import Answer, Neighbour, Testimony

PING_SECONDS = 1.0
AGAIN_SECONDS = 0.35
"""Time until the next ping if there is no answer, as long as the neighbour is not silent."""
SILENT_AFTER = 3
"""With a packet loss of 5 % each way one watcher errs about once in twenty minutes; one watcher alone decides
nothing."""
LATE_SECONDS = 0.5
"""If a tick is this late, this agent itself was delayed: then missing answers prove nothing."""
AWAITED_LIMIT = 4
"""How many of the newest pings may still be answered: a late answer counts too."""


@dataclass(frozen=True, slots=True)
class Watched:
    """One neighbour and its answers."""

    neighbour: Neighbour
    due_at: float
    """When to ping it between beats; infinity: not before the next beat."""
    awaited: tuple[int, ...] = ()
    """Sequences of the newest unanswered pings; empty: the newest ping was answered or refused."""
    unanswered_since: float = 0.0
    missed: int = 0
    """Pings in a row that were not answered in time; counts up to SILENT_AFTER."""
    testimony: Testimony | None = None
    """None until it has answered once."""


@dataclass(frozen=True, slots=True)
class WatchState:
    """``sequence``: of the newest ping to any neighbour. It starts at a random number, so that no sequence is used
    twice."""

    sequence: int
    watched: Mapping[str, Watched] = field(default_factory=dict)
    beat_at: float = 0.0
    """When to ping every neighbour next."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The neighbours to watch from now on."""

    neighbours: Sequence[Neighbour]
    now: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A valid answer to the ping with that sequence came in."""

    server_id: str
    sequence: int
    now: float


@dataclass(frozen=True, slots=True)
class WasRefused:
    """The neighbour's kernel says that the port is closed."""

    server_id: str
    now: float


@dataclass(frozen=True, slots=True)
class NotSent:
    """The ping could not be sent because this agent itself lacks something for it, such as a file descriptor."""

    server_id: str


@dataclass(frozen=True, slots=True)
class Elapsed:
    """The time that ``next_look`` returned has come."""

    now: float


WatchEvent = Assigned | Answered | WasRefused | NotSent | Elapsed


@dataclass(frozen=True, slots=True)
class Ping:
    server_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Tell:
    """All current testimonies; they differ from those before."""

    testimonies: tuple[Testimony, ...]


WatchInstruction = Ping | Tell


def step(state: WatchState, event: WatchEvent) -> tuple[WatchState, tuple[WatchInstruction, ...]]:
    """Returns the state after the event, and the instructions."""
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
        case NotSent():
            return _not_sent(state, event), ()
        case Elapsed():
            after, pings = _elapsed(state, event.now)
            return after, (*pings, *_news(state, after))
        case _:
            assert_never(event)


def next_look(state: WatchState) -> float:
    """When the next ``Elapsed`` is due; infinity: no neighbour is watched."""
    if not state.watched:
        return math.inf
    return min(state.beat_at, *(watched.due_at for watched in state.watched.values()))


def all_testimonies(state: WatchState) -> tuple[Testimony, ...]:
    """All current testimonies."""
    return tuple(watched.testimony for watched in state.watched.values() if watched.testimony is not None)


def _news(before: WatchState, after: WatchState) -> tuple[Tell, ...]:
    if before.watched is after.watched:
        return ()
    now = all_testimonies(after)
    return (Tell(now),) if now != all_testimonies(before) else ()


def _assigned(state: WatchState, event: Assigned) -> WatchState:
    """A neighbour that stays, with the same address and key, keeps its state."""
    watched = {}
    for neighbour in event.neighbours:
        peer = state.watched.get(neighbour.server_id)
        if peer is None or peer.neighbour != neighbour:
            peer = Watched(neighbour, due_at=event.now)
        watched[neighbour.server_id] = peer
    beat_at = state.beat_at if state.watched else event.now + PING_SECONDS
    return replace(state, watched=watched, beat_at=beat_at)


def _answered(state: WatchState, event: Answered) -> WatchState:
    peer = state.watched.get(event.server_id)
    if peer is None or event.sequence not in peer.awaited:
        return state
    return _with(state, _settled(peer, Answer.ANSWERS, event.now))


def _refused(state: WatchState, event: WasRefused) -> WatchState:
    peer = state.watched.get(event.server_id)
    if peer is None or not peer.awaited:
        return state
    if peer.testimony is None:
        return _with(state, replace(peer, due_at=math.inf, awaited=(), missed=0))
    return _with(state, _settled(peer, Answer.REFUSED, event.now))


def _not_sent(state: WatchState, event: NotSent) -> WatchState:
    """What was not asked is not answered: that proves nothing."""
    peer = state.watched.get(event.server_id)
    return _with(state, replace(peer, due_at=math.inf, awaited=(), missed=0)) if peer else state


def _settled(peer: Watched, answer: Answer, now: float) -> Watched:
    testimony = _testimony(peer, answer, now)
    return replace(peer, due_at=math.inf, awaited=(), missed=0, testimony=testimony)


def _testimony(peer: Watched, answer: Answer, since: float) -> Testimony:
    """``after_refusal`` tells a host whose refusals reach us from one behind a firewall that drops them: only the
    silence of the first says something about a host without an agent."""
    before = peer.testimony.answer if peer.testimony is not None else None
    if peer.testimony is not None and before is answer:
        return peer.testimony
    after_refusal = answer is Answer.SILENT and before is Answer.REFUSED
    return Testimony(peer.neighbour.server_id, answer, since, after_refusal)


def _elapsed(state: WatchState, now: float) -> tuple[WatchState, list[Ping]]:
    is_beat = now >= state.beat_at
    is_late = now >= next_look(state) + LATE_SECONDS
    sequence = state.sequence
    watched = dict(state.watched)
    pings = []
    for server_id, peer in state.watched.items():
        if now < peer.due_at and not (is_beat and peer.due_at == math.inf):
            continue
        sequence = (sequence + 1) % 2**64
        pings.append(Ping(server_id, sequence))
        watched[server_id] = _pinged(_begun_anew(peer, now) if is_late else _missed(peer), sequence, now)
    beat_at = now + PING_SECONDS if is_beat else state.beat_at
    return WatchState(sequence, watched, beat_at), pings


def _begun_anew(peer: Watched, now: float) -> Watched:
    """Answers that are missing because this agent was delayed do not count against the neighbour."""
    return replace(peer, missed=0, unanswered_since=now)


def _missed(peer: Watched) -> Watched:
    """Count a missed answer, if the newest ping was not answered in time or until this beat."""
    if not peer.awaited or peer.missed >= SILENT_AFTER:
        return peer
    peer = replace(peer, missed=peer.missed + 1)
    if peer.missed < SILENT_AFTER or peer.testimony is None:
        return peer
    return replace(peer, testimony=_testimony(peer, Answer.SILENT, peer.unanswered_since))


def _pinged(peer: Watched, sequence: int, now: float) -> Watched:
    """If there is no answer another ping follows soon, until the neighbour is silent."""
    return replace(
        peer,
        due_at=now + AGAIN_SECONDS if peer.missed < SILENT_AFTER else math.inf,
        awaited=(*peer.awaited, sequence)[-AWAITED_LIMIT:],
        unanswered_since=peer.unanswered_since if peer.awaited else now,
    )


def _with(state: WatchState, peer: Watched) -> WatchState:
    return replace(state, watched={**state.watched, peer.neighbour.server_id: peer})
