"""Blame is computed from what deaths have in common.

Deaths of one spec on several servers blame the spec. Deaths of several specs on one server blame the server. Silence
of many servers at once blames the scheduler's own network (``storm``).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from msgspec import Struct

from galactica.scheduler.core.model.fleet import Death, Fleet, Server
from galactica.scheduler.core.model.verdict import Evidence

SPEC_DEATHS = 3
SPEC_SERVERS = 2
"""The spec is blamed from this many deaths, on this many servers."""

SERVER_DEATHS = 3
SERVER_GROUPS = 2
"""A server is not blamed for fewer deaths, or for deaths of fewer groups."""

CHANCE_LIMIT = 0.001
"""A server is blamed if the probability that so many deaths fell on it by chance is below this."""

CHANCE_LIMIT_OF_ALL = 0.01
"""The same for all compared servers together: among hundreds of servers one is always unlucky."""

SUSPECT_DEATHS = 2
"""From this many deaths on, a server gets no new cells while others can take them."""


class Blame(Struct, frozen=True):
    """``evidence``: the deaths that it rests on."""

    reason: str
    evidence: tuple[Evidence, ...]


def blame_spec(deaths: Sequence[Death], digest: str, now: float, window_seconds: float) -> Blame | None:
    """Whether the spec itself is to blame for the deaths of its cells."""
    recent = [d for d in deaths if d.digest == digest and now - d.at <= window_seconds]
    servers = {death.server for death in recent}
    if len(recent) < SPEC_DEATHS or len(servers) < SPEC_SERVERS:
        return None
    where = f"{len(servers)} servers within {window_seconds:g} s"
    reason = f"{len(recent)} of its cells died on {where}: the spec is to blame"
    return Blame(reason, tuple(map(_fact, recent)))


def blame_server(server: Server, fleet: Fleet, now: float, window_seconds: float) -> Blame | None:
    """Whether the server is to blame for the deaths on it.

    It is if the deaths belong to several groups, and if more of these groups' deaths fell on it than chance explains,
    given its share of their cells. So a spec that dies everywhere does not blame a server, nor does somebody who kills
    cells all over the fleet. A server that cannot be compared with others is never blamed."""
    recent = [death for death in server.deaths if now - death.at <= window_seconds]
    groups = {death.group for death in recent if _is_known(death, fleet)}
    if len(recent) < SERVER_DEATHS or len(groups) < SERVER_GROUPS:
        return None
    here, cells_here, everywhere, cells_everywhere = 0, 0, 0, 0
    for state in (fleet.groups[group] for group in groups):
        deaths = [death for death in state.deaths if now - death.at <= window_seconds]
        here += sum(death.server == server.id for death in deaths)
        everywhere += len(deaths)
        cells_here += state.per_server.get(server.id) or 0
        cells_everywhere += sum(state.per_server.values())
    share = (cells_here + here) / (cells_everywhere + everywhere)
    compared = max(len(fleet.groups[group].per_server) for group in groups)
    limit = min(CHANCE_LIMIT, CHANCE_LIMIT_OF_ALL / max(1, compared))
    if here < SERVER_DEATHS or chance_of(here, everywhere, share) >= limit:
        return None
    reason = (
        f"{here} of the {everywhere} deaths of {len(groups)} groups within {window_seconds:g} s fell on it, which had "
        f"{share:.0%} of their cells: the server is to blame"
    )
    return Blame(reason, tuple(map(_fact, recent)))


def _is_known(death: Death, fleet: Fleet) -> bool:
    """Deaths of a deleted group do not count, even if a group of the same name was applied again."""
    state = fleet.groups.get(death.group)
    return state is not None and death in state.deaths


def chance_of(here: int, everywhere: int, share: float) -> float:
    """The probability that at least ``here`` of ``everywhere`` deaths fall on a server that has ``share`` of the
    cells, if each cell is equally likely to die: the upper tail of the binomial distribution."""
    tail = range(here, everywhere + 1)
    return sum(comb(everywhere, k) * share**k * (1.0 - share) ** (everywhere - k) for k in tail)


def is_suspect(deaths: Sequence[Death], now: float, window_seconds: float) -> bool:
    """Whether a server had enough deaths to get no new cells for a while."""
    return sum(now - death.at <= window_seconds for death in deaths) >= SUSPECT_DEATHS


def _fact(death: Death) -> Evidence:
    return Evidence(f"server {death.server}", f"a cell of {death.group} died by rule {death.rule}", death.at)
