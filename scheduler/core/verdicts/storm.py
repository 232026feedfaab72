"""The storm guard: when many servers fall silent together, the scheduler suspects its own network.

The guard combines a number, a share and a time window. So a small pool can still lose one server, and a large pool
loses none because a switch, a network or the scheduler had a bad minute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from galactica.scheduler.core.model.fleet import Fleet, Phase, Server, Silence
from galactica.scheduler.core.model.keys import Storm
from galactica.scheduler.core.model.policy import Policy
from galactica.scheduler.core.sight.state import Sight
from galactica.scheduler.core.verdicts.evidence import last_heard_at
from galactica.scheduler.core.verdicts.maintenance import host_silence, maintenance_of


def storm_of(fleet: Fleet, sight: Sight, pool: str, now: float, policy: Policy) -> Storm | None:
    """The pool's storm, unless it has expired or was released. It does not expire while the scheduler hears no
    server of any pool."""
    silence = _silence_in(fleet, sight, pool, now, policy)
    is_blind = _is_blind(fleet, sight, now, policy)
    if not silence.silent or not (silence.is_storm or is_blind):
        return None
    since = silence.since
    expires_at = (now if is_blind else since) + policy.storm_hold_seconds
    if now >= expires_at:
        return None
    where = f"pool {pool}" if pool else "the joined servers"
    count = len(silence.silent)
    doubt = "the scheduler suspects its own network and condemns none of them for silence"
    if is_blind:
        doubt += "; it hears no server at all, so only an operator can end this"
    within = f"within {policy.storm_window_seconds:g} s, more than {silence.tolerated}"
    reason = (
        f"{count} of {silence.of} of {where} fell silent{f' {within}' if silence.is_storm else ''}: {doubt}"
    )
    return Storm(f"{pool or 'joined'}-{int(since)}", pool, count, silence.of, since, expires_at, reason)


def is_released(fleet: Fleet, sight: Sight, server: Server, now: float, policy: Policy) -> bool:
    """Whether an operator confirmed that this server's silence is real. The release covers only servers that were
    silent at that moment. Those that fall silent later are guarded again."""
    until = fleet.released.get(server.pool)
    if until is None or now >= until:
        return False
    released_at = until - policy.storm_hold_seconds
    return policy.tempo(len(fleet.servers)).is_silent(last_heard_at(server, sight), released_at)


def is_calm(fleet: Fleet, sight: Sight, pool: str, now: float, policy: Policy) -> bool:
    """Whether the pool has no more silent servers than tolerated, and the scheduler hears some server."""
    silence = _silence_in(fleet, sight, pool, now, policy)
    return not silence.is_storm and not _is_blind(fleet, sight, now, policy)


class _Silence(NamedTuple):
    """``silent``: server to the time it was last heard. ``of``: how many servers count. ``tolerated``: how many may be
    silent at once before it is a storm."""

    silent: Mapping[str, float]
    of: int
    tolerated: int

    @property
    def is_storm(self) -> bool:
        return len(self.silent) > self.tolerated

    @property
    def since(self) -> float:
        """Start of the storm: when the first server beyond the tolerated number fell silent."""
        return sorted(self.silent.values())[self.tolerated if self.is_storm else 0]


def _silence_in(fleet: Fleet, sight: Sight, pool: str, now: float, policy: Policy) -> _Silence:
    tempo = policy.tempo(len(fleet.servers))
    condemned = {one.server: one.at for one in _recent(fleet.silences.get(pool) or (), now, policy)}
    there = [server for server in fleet.servers.values() if server.pool == pool and _counts(server)]
    silent = dict(condemned)
    for server in there:
        heard_at = last_heard_at(server, sight)
        lease = maintenance_of(server, sight, now)
        if lease is not None:
            # Its agent's silence was announced, and says nothing about the scheduler's own sight. Its host's does.
            host = host_silence(fleet, server, lease, sight, now, policy)
            if not host.is_death:
                continue
            heard_at = host.since
        if (lease or tempo.is_silent(heard_at, now)) and not is_released(fleet, sight, server, now, policy):
            silent[server.id] = heard_at
    of = len(condemned.keys() | {server.id for server in there})
    return _Silence(silent, of, max(1, int(of * policy.storm_fraction)))


def hears_anybody(fleet: Fleet, sight: Sight, now: float, policy: Policy) -> bool:
    """Whether any server was heard lately. A scheduler that is cut off from all servers must never replace them."""
    tempo = policy.tempo(len(fleet.servers))
    return not all(tempo.is_silent(seen.heard_at, now) for seen in sight.servers.values())


def _is_blind(fleet: Fleet, sight: Sight, now: float, policy: Policy) -> bool:
    """No server is heard, although there are several now or were a moment ago. Then the guard holds for pools of any
    size. A single server may really have died."""
    if hears_anybody(fleet, sight, now, policy):
        return False
    there = {server.id for server in fleet.servers.values() if _counts(server)}
    lost = {one.server for silences in fleet.silences.values() for one in _recent(silences, now, policy)}
    return bool(there) and len(there | lost) > 1


def _recent(silences: Iterable[Silence], now: float, policy: Policy) -> Iterable[Silence]:
    return (one for one in silences if now - one.at < policy.storm_window_seconds)


def _counts(server: Server) -> bool:
    return server.phase in (Phase.READY, Phase.CONDEMNED) and not server.is_lost
